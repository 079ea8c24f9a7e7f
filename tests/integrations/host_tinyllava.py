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
    plain = transformers.Trainer.train

    def train(self: Any, *more: Any, **told: Any) -> Any:
        seen["model"] = self.model
        seen["before"] = {k: v.clone() for k, v in self.model.state_dict().items()}
        return plain(self, *more, **told)

    transformers.Trainer.train = train
    try:
        script(repo, "train/train.py", args, config)
    finally:
        transformers.Trainer.train = plain
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    host, part = Path(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as place:
        parts: dict[str, Any] = {"stages": stages}
        parts[part](host, Path(place))
    sys.stdout.write(f"ok {part}\n")
