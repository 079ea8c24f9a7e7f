"""Run by the Python of `make hosts`: the unmodified TinyLLaVA_Factory trains and opens CALM.

    python tests/integrations/host_tinyllava.py REPO PART     # PART: stages, checkpointing, ...

Prints ``ok PART``.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.integrations.host_llava import WORDS, tokenizer


def assets(root: Path, depth: int = 5) -> dict[str, str]:
    """Write a CLIP, a DINOv2, a Llama and a data set of digits; return their paths."""
    import transformers as hf
    from PIL import Image

    torch.manual_seed(0)
    clip, dino, llm = root / "clip", root / "dino", root / "tinyllama"
    llm.mkdir(parents=True)
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": depth}
    size = {"height": 56, "width": 56}
    vision = {**shape, "intermediate_size": 48, "image_size": 56, "patch_size": 14}
    text = {**shape, "num_hidden_layers": 1, "intermediate_size": 48, "vocab_size": 64}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    hf.CLIPModel(config).save_pretrained(clip)
    hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=size).save_pretrained(clip)
    other = hf.Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=4, image_size=98, patch_size=14
    )
    hf.Dinov2Model(other).save_pretrained(dino)
    size = {"height": 70, "width": 70}  # unlike the 98 of the tower, as that of DINOv2 is
    hf.BitImageProcessor(size={"shortest_edge": 76}, crop_size=size).save_pretrained(dino)
    decoder = hf.LlamaConfig(
        vocab_size=tokenizer(llm),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.1,
    )
    hf.LlamaForCausalLM(decoder).save_pretrained(llm)
    rng, rows = np.random.default_rng(1), []
    for n in range(16):
        Image.fromarray(rng.integers(0, 255, (60, 60, 3), np.uint8)).save(root / f"{n}.png")
        ask = {"from": "human", "value": "<image>\nwhat is here"}
        say = {"from": "gpt", "value": " ".join(rng.choice(WORDS, 4))}
        row = {"id": str(n), "image": f"{n}.png", "conversations": [ask, say]}
        if n % 8 == 7:
            row.pop("image")
            ask["value"] = "what is here"
        rows.append(row)
    (root / "data.json").write_text(json.dumps(rows))
    (root / "pictures.json").write_text(json.dumps([r for r in rows if "image" in r]))
    return {"clip": str(clip), "dino": str(dino), "llm": str(llm), "root": str(root)}


def arguments(paths: dict[str, str], out: Path, stage: int, **more: str) -> list[str]:
    """Return the command line of train.py."""
    root = paths["root"]
    told = {
        "model_name_or_path": paths["llm"],
        "vision_tower": f"calm:{paths['clip']}",
        "vision_tower2": f"calm:{paths['dino']}",
        "connector_type": "mlp2x_gelu",
        "mm_vision_select_layer": "-2",
        "data_path": f"{root}/{'pictures' if stage == 1 else 'data'}.json",
        "image_folder": root,
        "conv_version": "pretrain" if stage == 1 else "llama",
        "output_dir": str(out),
        "training_recipe": "common",
        "tune_type_llm": "frozen" if stage == 1 else "full",
        "tune_type_vision_tower": "calm" if stage == 1 else "frozen",
        "tune_type_connector": "full",
        "max_steps": "4",
        "per_device_train_batch_size": "4",
        "learning_rate": "5e-3",
        "logging_steps": "1",
        "save_strategy": "no",
        "report_to": "none",
        "model_max_length": "256",
        "use_cpu": "True",
        "lr_scheduler_type": "constant",
        "dataloader_num_workers": "0",
        "dataloader_pin_memory": "False",
        "disable_tqdm": "True",
        **more,
    }
    return [part for name, value in told.items() for part in (f"--{name}", value)]


def script(repo: Path, name: str, args: list[str], config: dict[str, Any] | None = None) -> None:
    """Run a script of the host through the launcher, in this process."""
    from cmibq import launch

    own = ["--cmibq-config", json.dumps(config)] if config else []
    launch.main(["--host", "tinyllava", *own, "--", str(repo / "tinyllava" / name), *args])


def run(repo: Path, args: list[str], config: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Train; return the model and its weights before training."""
    import transformers

    seen: dict[str, Any] = {}
    plain = transformers.Trainer._inner_training_loop

    def train(self: Any, *more: Any, **told: Any) -> Any:
        seen["model"] = self.model
        seen["before"] = {k: v.clone() for k, v in self.model.state_dict().items()}
        return plain(self, *more, **told)

    transformers.Trainer._inner_training_loop = train
    try:
        script(repo, "train/train.py", args, config)
    finally:
        transformers.Trainer._inner_training_loop = plain
    return seen["model"].eval(), seen["before"]


def moved(model: Any, before: dict[str, Any]) -> set[str]:
    """Return which weights training has changed."""
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


def fusions(model: Any) -> set[str]:
    """Return the names of CALM's weights."""
    return {k for k in model.state_dict() if ".calm_modules." in k}


def inputs(model: Any, rows: int = 3) -> dict[str, Any]:
    """Return token ids with an image in every row but the last, and packed pixels."""
    g = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 200, (rows, 9), generator=g)
    ids[:-1, 3] = -200
    size = model.vision_tower._image_processor.size
    images = torch.randn(rows, 3, size["height"], size["width"], generator=g)
    return {"input_ids": ids, "images": images}


@torch.no_grad()
def logits(model: Any, told: dict[str, Any]) -> torch.Tensor:
    """Return the logits of a model."""
    return model(**told).logits


def stages(repo: Path, root: Path) -> None:
    """Stage one, stage two, opening without the towers, and the command line."""
    paths, one, two = assets(root), root / "calm-pretrain", root / "calm-finetune"
    model, before = run(repo, arguments(paths, one, 1))
    changed = moved(model, before)
    assert len(fusions(model)) == 28, sorted(fusions(model))
    assert {k for k in changed if "vision_tower" in k} == fusions(model), changed
    assert not [k for k in changed if "language_model" in k], changed
    rows = json.loads((one / "trainer_state.json").read_text())["log_history"]
    keys = {"train_loss", "learning_rate", "calm_module_grad_norm", "attention_entropy"}
    assert all(keys <= row.keys() for row in rows if "loss" in row), rows
    assert rows[-2]["calm_module_grad_norm"] > 0
    first = {k: v for k, v in model.state_dict().items() if "vision_tower" in k}
    saved = torch.load(one / "vision_tower/pytorch_model.bin", weights_only=True)
    assert {f"vision_tower._vision_tower.{k}" for k in saved} == first.keys()
    more = {"pretrained_model_path": str(one)}
    model, before = run(repo, arguments(paths, two, 2, **more))
    state = model.state_dict()
    for name, value in first.items():
        assert torch.equal(before[name], value), f"stage two starts without {name}"
        assert torch.equal(state[name], value), f"{name} was frozen"
    told = inputs(model)
    want = logits(model, told)
    for name in ("clip", "dino"):
        shutil.move(paths[name], root / f"{name}-away")
    from tinyllava.model import load_pretrained_model

    again, _, processor, _ = load_pretrained_model(str(two), device="cpu")
    assert torch.equal(logits(again.eval(), told), want)
    assert processor.size == {"height": 126, "width": 70}
    command_line(repo, root, two)


def command_line(repo: Path, root: Path, folder: Path) -> None:
    """Ask serve/cli.py a question."""
    args = ["--model-path", str(folder), "--image-file", str(root / "0.png"), "--device", "cpu"]
    args += ["--conv-mode", "llama", "--temperature", "0", "--max-new-tokens", "4", "--debug"]
    said, plain = io.StringIO(), sys.stdin
    sys.stdin = io.StringIO("what is here\n\n")
    try:
        with contextlib.redirect_stdout(said):
            script(repo, "serve/cli.py", args)
    finally:
        sys.stdin = plain
    assert "'outputs'" in said.getvalue(), said.getvalue()


def finetuned(repo: Path, root: Path) -> tuple[dict[str, str], Path]:
    """Train both stages; return the assets and the folder of the second."""
    paths, one, two = assets(root), root / "serve-pretrain", root / "serve-finetune"
    run(repo, arguments(paths, one, 1, max_steps="1"))
    run(repo, arguments(paths, two, 2, max_steps="1", pretrained_model_path=str(one)))
    return paths, two


@contextlib.contextmanager
def without_cuda() -> Any:
    """Let scripts that always say cuda run here."""
    kept = {k: (k.to, k.cuda) for k in (torch.Tensor, torch.nn.Module)}

    def to(plain: Any) -> Any:
        def moved(self: Any, *args: Any, **told: Any) -> Any:
            args = tuple(a for a in args if a != "cuda")
            told = {k: v for k, v in told.items() if v != "cuda"}
            return plain(self, *args, **told) if args or told else self

        return moved

    for kind in kept:
        kind.to, kind.cuda = to(kind.to), lambda self, *_: self
    try:
        yield
    finally:
        for kind, (first, second) in kept.items():
            kind.to, kind.cuda = first, second


def serving(repo: Path, root: Path) -> None:
    """The demo answers about a picture, and scripts of the evaluation run."""
    import runpy
    from unittest import mock

    from PIL import Image

    _, folder = finetuned(repo, root)
    for name in ("gradio", "shortuuid"):
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = mock.MagicMock(uuid=lambda: "id", __version__="0")
    kept, plain = {}, runpy.run_path
    runpy.run_path = lambda *a, **k: kept.update(plain(*a, **k))
    same = ["--model-path", str(folder), "--conv-mode", "llama"]
    with mock.patch("gradio.Blocks.launch", create=True):
        script(repo, "serve/app.py", [*same, "--device", "cpu"])
    runpy.run_path = plain
    state = kept["Message"]()
    picture = Image.open(root / "0.png")
    kept["add_text"](state, "what is here", picture, "Default")
    answers = [chat[-1][1] for _, chat in kept["http_bot"](state, 0.0, 1.0, 4)]
    assert answers[0] == "\u258c", answers
    ask = ["--image-file", str(root / "0.png"), "--query", "what is here", "--temperature", "0"]
    asked = {"question_id": 1, "image": "0.png", "text": "what is here"}
    (root / "ask.jsonl").write_text(json.dumps(asked))
    told = {"image-folder": str(root), "question-file": str(root / "ask.jsonl"), "temperature": "0"}
    told |= {"answers-file": str(root / "out/answers.jsonl"), "max_new_tokens": "4"}
    with without_cuda(), contextlib.redirect_stdout(io.StringIO()):
        script(repo, "eval/run_tiny_llava.py", [*same, *ask, "--max_new_tokens", "4"])
        more = [part for name, value in told.items() for part in (f"--{name}", value)]
        script(repo, "eval/model_vqa_loader.py", [*same, *more])
    assert json.loads((root / "out/answers.jsonl").read_text())["question_id"] == 1


def checkpointing(repo: Path, root: Path) -> None:
    """Gradient checkpointing and a cache of features leave the weights that come out alone."""
    paths, found = assets(root), []
    for wanted in ("False", "True", "cache"):
        torch.manual_seed(3)
        more = {"gradient_checkpointing": str(wanted == "True"), "max_steps": "6"}
        more |= {"feature_cache": str(root / "features")} if wanted == "cache" else {}
        model, before = run(repo, arguments(paths, root / f"calm-{wanted}", 1, **more))
        assert {k for k in moved(model, before) if "vision" in k} == fusions(model), wanted
        assert model.vision_tower._vision_tower.gradient_checkpointing is (wanted == "True")
        found.append(model.state_dict())
    assert model.vision_tower._vision_tower.cache.hits > 0, "14 pictures, 24 were asked for"
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)


def readme(repo: Path, root: Path) -> None:
    """The README's spelling, its module with a layer norm, all of both towers trained."""
    paths = assets(root)
    told = {"vision_tower": "calm", "model_name_or_path": paths["clip"]}
    told |= {"model_name_or_path2": paths["dino"], "llm_model_name_or_path": paths["llm"]}
    told |= {"training_recipe": "calm", "fusion_strategy": "cross_attention"}
    args = arguments(paths, root / "readme", 1, **told)
    at = args.index("--vision_tower2")
    del args[at : at + 2]
    with caught() as said:
        model, before = run(repo, args)
    assert len(fusions(model)) == 32
    assert fusions(model) <= moved(model, before)
    text = "\n".join(said)
    assert "cross_attention" in text, text
    assert "at step 0" in text, text
    more = {"tune_type_vision_tower": "full", "composition_layers": "2"}
    with caught() as said:
        model, before = run(repo, arguments(paths, root / "full", 1, **more))
    assert "at step 0" not in "\n".join(said)
    assert len(fusions(model)) == 14
    names = moved(model, before)
    assert any("anchor_tower" in k for k in names)
    assert any("augmenting_tower" in k for k in names)


@contextlib.contextmanager
def caught() -> Any:
    """Collect what is warned of."""
    import logging

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("cmibq").addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger("cmibq").removeHandler(handler)


LAYER = {"hidden_dim": 16, "min_bits": 1, "stage1_bits": 4, "stage2_bits": 2, "mode": "task"}


def bottleneck(repo: Path, root: Path) -> None:
    """A CM-IBQ layer behind the connector, in both stages; open, generate, refuse without it."""
    paths, one, two = assets(root), root / "both-pretrain", root / "both-finetune"
    config = {"calm": {"composition_layers": 2}, "cm_ibq": LAYER}
    model, before = run(repo, arguments(paths, one, 1, max_steps="6"), config)
    layer = {k for k, _ in model.named_parameters() if ".cm_ibq." in k}
    assert layer
    changed = moved(model, before)
    assert fusions(model) <= changed, fusions(model) - changed
    for part in ("encoder", "decoder", "prior"):
        assert {k for k in layer & changed if f".layer.{part}." in k}, f"{part} was not trained"
    first = {k: v for k, v in model.state_dict().items() if ".cm_ibq." in k}
    log = json.loads((one / "trainer_state.json").read_text())["log_history"]
    bits = [row["cm_ibq/target_bits"] for row in log if "loss" in row]
    assert (bits[0], bits[-1]) == (4, 2), bits
    from cmibq.integrations import tinyllava

    tinyllava.uninstall()
    more = {"pretrained_model_path": str(one)}
    model, before = run(repo, arguments(paths, two, 2, **more))
    for name, value in first.items():
        assert torch.equal(before[name], value), f"stage two starts without {name}"
    told = inputs(model)
    want = logits(model, told)
    from tinyllava.model import load_pretrained_model

    again = load_pretrained_model(str(two), device="cpu")[0]
    assert torch.equal(logits(again, told), want)
    made = again.generate(
        told["input_ids"][:1],
        images=told["images"][:1],
        max_new_tokens=1,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    alone = {k: v[:1] for k, v in told.items()}
    assert torch.allclose(made.scores[0], logits(again, alone)[:, -1], atol=1e-5)
    tinyllava.uninstall()
    for folder in (one, two):
        try:
            load_pretrained_model(str(folder), device="cpu")
        except Exception as error:
            complaint = str(error)
        else:
            complaint = "none"
        assert "none" not in complaint, folder


def torchrun(repo: Path, root: Path) -> None:
    """Two processes train the fusions and a layer behind the connector."""
    import subprocess

    paths, out = assets(root), root / "two"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher += ["-m", "cmibq.launch", "--host", "tinyllava"]
    launcher += ["--cmibq-config", json.dumps({"cm_ibq": LAYER})]
    more = {"per_device_train_batch_size": "2", "ddp_backend": "gloo", "max_steps": "6"}
    args = arguments(paths, out, 1, **more, gradient_checkpointing="True")
    train = str(repo / "tinyllava/train/train.py")
    command = [sys.executable, *launcher, "--", train, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    found = [row["loss"] for row in log if "loss" in row]
    assert sum(found[-2:]) < sum(found[:2]), found
    saved = torch.load(out / "vision_tower/pytorch_model.bin", weights_only=True)
    gates = [v for k, v in saved.items() if k.endswith(".gate")]
    assert len(gates) == 4
    assert all(bool(gate.any()) for gate in gates)


def _twice(name: str) -> str:
    """Return a weight's name as the public fork has it."""
    if "calm_modules." not in name:
        return name
    name = name.replace(".projection.", ".projection.projection.")
    return name.replace(".cross_attention.", ".cross_attention.cross_attention.")


def _forked(config: Path) -> None:
    fields = json.loads(config.read_text())
    fields["vision_config"].pop("calm")
    config.write_text(json.dumps(fields))


@torch.no_grad()
def _fork_features(tower: Any, pixels: dict[str, Any]) -> torch.Tensor:
    """Return what the fork's own forward gives: layers 3, 6, 9, 12, no norm, the last layer."""
    other = tower.augmenting_tower(pixels["augmenting"], output_hidden_states=True).hidden_states
    clip = tower.anchor_tower.vision_model
    hidden = clip.pre_layrnorm(clip.embeddings(pixels["anchor"]))
    for at, layer in enumerate(clip.encoder.layers, 1):
        hidden = layer(hidden, None, None)[0]
        if at in (3, 6, 9, 12):
            module = tower.calm_modules[at // 3 - 1]
            seen = module.projection(other[at // 3 * len(other[1:]) // 4])
            hidden = hidden + module.cross_attention(hidden, seen, seen)[0]
    return hidden[:, 1:]


def fork(repo: Path, root: Path) -> None:
    """Checkpoints of the public CALM fork, in both of its layouts, open and train on."""
    from safetensors.torch import load_file, save_file
    from transformers import CLIPModel

    paths, one, two = assets(root, depth=14), root / "calm-pretrain", root / "calm-finetune"
    more = {"fusion_strategy": "cross_attention", "norm": "none", "anchor_layers": "3,6,9,12"}
    more["mm_vision_select_layer"] = "-1"
    run(repo, arguments(paths, one, 1, **more))
    whole = {
        f"anchor_tower.{k}": v
        for k, v in CLIPModel.from_pretrained(paths["clip"]).state_dict().items()
    }
    file = one / "vision_tower/pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    torch.save(whole | {_twice(k): v for k, v in state.items()}, file)
    _forked(one / "config.json")
    more = {"pretrained_model_path": str(one), "tune_type_vision_tower": "calm"}
    model, before = run(repo, arguments(paths, two, 2, **more))
    for name, value in state.items():
        assert torch.equal(before[f"vision_tower._vision_tower.{name}"], value), name
    assert len(fusions(model)) == 24
    assert fusions(model) <= moved(model, before)
    _forked(two / "config.json")
    save_file(
        {_twice(k): v for k, v in load_file(two / "model.safetensors").items()},
        two / "model.safetensors",
    )
    from tinyllava.model import load_pretrained_model

    again = load_pretrained_model(str(two), device="cpu")[0]
    told = inputs(again)
    assert torch.equal(logits(again, told), logits(model, told))
    tower = again.vision_tower
    pixels = tower._image_processor.unpack(told["images"])
    with torch.no_grad():
        made = tower(told["images"])
    torch.testing.assert_close(
        made, _fork_features(tower._vision_tower, pixels), rtol=1e-5, atol=1e-5
    )


def scripts(repo: Path, root: Path) -> None:
    """The script that comes with cmibq runs both stages."""
    import os
    import subprocess

    import cmibq

    paths = assets(root)
    told = {"TINYLLAVA": str(repo), "LLM_VERSION": paths["llm"], "VT_VERSION": paths["clip"]}
    told |= {"VT_VERSION2": paths["dino"], "OUTPUT": str(root / "calm"), "PYTHON": sys.executable}
    told |= {"DATA_PATH": str(root / "pictures.json"), "IMAGE_PATH": str(root)}
    told |= {"FINETUNE_DATA_PATH": str(root / "data.json"), "FINETUNE_IMAGE_PATH": str(root)}
    file = Path(cmibq.__file__).parent / "configs/tinyllava/train_calm.sh"
    more = ["--use_cpu", "True", "--max_steps", "2", "--per_device_train_batch_size", "4"]
    command = ["bash", str(file), *more, "--ddp_backend", "gloo"]
    env = os.environ | told
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (root / "calm-finetune/model.safetensors").is_file()


def attributes() -> dict[str, Any]:
    """Return every attribute of the host's classes and modules that may be touched."""
    import importlib

    import transformers

    names = (
        "model.configuration_tinyllava:TinyLlavaConfig",
        "model.modeling_tinyllava:TinyLlavaForConditionalGeneration",
        "model.connector.base:Connector",
        "training_recipe.base:BaseTrainingRecipe",
        "training_recipe.lora_recipe:LoRATrainingRecipe",
        "train.tinyllava_trainer:LLaVATrainer",
        "utils.logging:",
        "model.vision_tower:",
        "training_recipe:",
        "data.template.formatter:StringFormatter",
    )
    owners = [transformers.PreTrainedModel, transformers.PretrainedConfig]
    for name in names:
        module, _, kind = name.partition(":")
        found = importlib.import_module(f"tinyllava.{module}")
        owners.append(getattr(found, kind) if kind else found)
    made = {f"{owner}.{name}": value for owner in owners for name, value in vars(owner).items()}
    tables = [v for k, v in made.items() if k.endswith("_FACTORY")]
    return made | {f"table {i}": list(table.items()) for i, table in enumerate(tables)}


def installing(repo: Path, root: Path) -> None:
    """install() twice is once, uninstall() undoes all, and paths with calm in them find CLIP."""
    sys.path.insert(0, str(repo))
    from cmibq.integrations import glue, tinyllava

    glue.unregister()
    tinyllava.install()  # the host cannot be imported without
    tinyllava.uninstall()
    before = attributes()
    for _ in range(2):
        tinyllava.install({"calm": {"composition_layers": 2}})
    from tinyllava.model.vision_tower import VisionTowerFactory

    assert VisionTowerFactory("calm:models/clip").__name__ == "CALMVisionTower"
    assert VisionTowerFactory("models/calm-runs/clip").__name__ == "CLIPVisionTower"
    tinyllava.uninstall()
    after = attributes()
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    same = {k for k, v in before.items() if after[k] is v or after[k] == v}
    assert same == before.keys(), before.keys() - same
    assert "deepspeed" not in sys.modules


if __name__ == "__main__":
    torch.set_num_threads(1)
    host, part = Path(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as place:
        parts: dict[str, Any] = {
            "stages": stages,
            "checkpointing": checkpointing,
            "readme": readme,
            "bottleneck": bottleneck,
            "torchrun": torchrun,
            "fork": fork,
            "serving": serving,
            "scripts": scripts,
            "installing": installing,
        }
        parts[part](host, Path(place))
    sys.stdout.write(f"ok {part}\n")
