"""Run by the Python of `make hosts`: the unmodified LLaVA trains, saves and opens a CM-IBQ layer.

    python tests/integrations/host_llava.py REPO PART     # PART: finetune, adapter, ...

Prints ``ok PART``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = "what is here red blue and two the one number a picture of shows see it".split()
LAYER = {"hidden_dim": 16, "min_bits": 1, "stage1_bits": 4, "stage2_bits": 2, "mode": "task"}


def stubs() -> None:
    """LLaVA imports deepspeed to save an adapter, installed or not."""
    for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero"):
        sys.modules[name] = types.ModuleType(name)
    part = types.ModuleType("deepspeed.runtime.zero.partition_parameters")
    part.ZeroParamStatus = types.SimpleNamespace(NOT_AVAILABLE=0)
    sys.modules[part.__name__] = part
    sys.modules["deepspeed"].zero = sys.modules["deepspeed.runtime.zero"]
    sys.modules["deepspeed"].__spec__ = ModuleSpec("deepspeed", None)


def tokenizer(folder: Path) -> int:
    """Write a slow Llama tokenizer of a corpus made here; return its size."""
    import sentencepiece
    from transformers import LlamaTokenizer

    rng = np.random.default_rng(0)
    text = folder / "corpus.txt"
    lines = [" ".join(rng.choice(WORDS, 8)) for _ in range(300)]
    text.write_text("\n".join([*lines, "USER: ASSISTANT: A chat between a curious user . ,"] * 2))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=360,
        byte_fallback=True,
        model_type="bpe",
        bos_id=1,
        eos_id=2,
        unk_id=0,
        pad_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    made = LlamaTokenizer(str(folder / "tokenizer.model"), legacy=True)
    made.save_pretrained(folder)
    return len(made)


def assets(root: Path) -> dict[str, str]:
    """Write a CLIP tower, a Llama and a data set; return their paths."""
    from PIL import Image
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    tower, llm = root / "clip", root / "llama"
    llm.mkdir()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    size = {"height": 8, "width": 8}
    config = CLIPVisionConfig(**shape, num_hidden_layers=2, image_size=8, patch_size=4)
    CLIPVisionModel(config).save_pretrained(tower)
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=size).save_pretrained(tower)
    vocabulary = tokenizer(llm)
    decoder = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    LlamaForCausalLM(decoder).save_pretrained(llm)
    rng, rows = np.random.default_rng(1), []
    for n in range(16):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(root / f"{n}.png")
        ask = {"from": "human", "value": "<image>\nwhat is here"}
        say = {"from": "gpt", "value": " ".join(rng.choice(WORDS, 4))}
        row = {"id": str(n), "image": f"{n}.png", "conversations": [ask, say]}
        if n % 4 == 3:
            row.pop("image")
            ask["value"] = "what is here"
        rows.append(row)
    (root / "data.json").write_text(json.dumps(rows))
    (root / "pictures.json").write_text(json.dumps([r for r in rows if "image" in r]))
    (root / "layer.json").write_text(json.dumps(LAYER))
    return {"tower": str(tower), "llm": str(llm), "root": str(root)}


def arguments(paths: dict[str, str], out: Path, *more: str, data: str = "data.json") -> list[str]:
    """Return the command line of LLaVA's train.py."""
    root = paths["root"]
    told = {
        "model_name_or_path": paths["llm"],
        "vision_tower": paths["tower"],
        "data_path": f"{root}/{data}",
        "image_folder": root,
        "output_dir": str(out),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": "-2",
        "version": "v1",
        "mm_use_im_start_end": "False",
        "mm_use_im_patch_token": "False",
        "max_steps": "8",
        "per_device_train_batch_size": "4",
        "learning_rate": "5e-3",
        "logging_steps": "1",
        "save_strategy": "no",
        "report_to": "none",
        "lazy_preprocess": "True",
        "dataloader_num_workers": "0",
        "model_max_length": "256",
        "use_cpu": "True",
        "lr_scheduler_type": "constant",
        "gradient_accumulation_steps": "2",
        "dataloader_pin_memory": "False",
        "disable_tqdm": "True",
    }
    told |= dict(zip(more[::2], more[1::2], strict=True))
    return [part for name, value in told.items() for part in (f"--{name}", value)]


def run(repo: Path, paths: dict[str, str], args: list[str]) -> Any:
    """Run the script through the launcher; return the model that it trained."""
    from cmibq import launch

    kept: list[Any] = []
    import transformers

    plain = transformers.Trainer.save_state

    def save_state(self: Any) -> None:
        kept.append(self.model)
        plain(self)

    transformers.Trainer.save_state = save_state
    script = str(repo / "llava/train/train.py")
    config = f"{paths['root']}/layer.json"
    launch.main(["--host", "llava", "--cmibq-config", config, "--", script, *args])
    transformers.Trainer.save_state = plain
    return kept[-1].eval()


def losses(out: Path) -> list[float]:
    """Return the loss of every step, and check that terms were logged and bits annealed."""
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    rows = [row for row in log if "loss" in row]
    bits = [row["cm_ibq/target_bits"] for row in rows]
    assert bits[0] == 4, bits
    assert bits[-1] == 2, bits
    assert {"cm_ibq/reconstruction", "cm_ibq/rate", "cm_ibq/task"} <= set(rows[0])
    return [row["loss"] for row in rows]


def torchrun(repo: Path, root: Path) -> None:
    """Two processes, of which one has at times a row of text alone."""
    import subprocess

    paths, out = assets(root), root / "llava-two"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher += ["-m", "cmibq.launch", "--host", "llava", "--cmibq-config", f"{root}/layer.json"]
    more = ("per_device_train_batch_size", "1", "max_steps", "6", "ddp_backend", "gloo")
    args = arguments(paths, out, *more)
    script = str(repo / "llava/train/train.py")
    command = [sys.executable, *launcher, "--", script, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = losses(out)
    assert sum(found[-2:]) < sum(found[:2]), found


def inputs(paths: dict[str, str], rows: int = 3) -> dict[str, Any]:
    """Return token ids with an image in every row but the last, and pictures."""
    g = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 200, (rows, 9), generator=g)
    ids[:-1, 3] = -200
    return {"input_ids": ids, "images": torch.randn(rows, 3, 8, 8, generator=g)}


@torch.no_grad()
def logits(model: Any, told: dict[str, Any]) -> torch.Tensor:
    """Return the logits of a model in the types it has."""
    return model(told["input_ids"], images=told["images"].to(model.dtype)).logits


def finetune(repo: Path, root: Path) -> None:
    """Train everything; save, open, identical logits, generate like forward."""
    paths = assets(root)
    model = run(repo, paths, arguments(paths, root / "llava-out"))
    found = losses(root / "llava-out")
    assert sum(found[-3:]) < sum(found[:3]), found
    from llava.model.builder import load_pretrained_model
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

    from cmibq.integrations.bottleneck import bridge_of, check

    told = inputs(paths)
    want = logits(model, told)
    again, info = LlavaLlamaForCausalLM.from_pretrained(
        root / "llava-out", output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert not [k for k in info["unexpected_keys"] if "cm_ibq" in k], info
    again.get_vision_tower().load_model()
    again.get_vision_tower().to(next(model.get_vision_tower().parameters()).dtype)
    again.eval()
    check(again)
    assert torch.equal(logits(again, told), want)
    state = bridge_of(again).layer.state_dict()
    for name, value in bridge_of(model).layer.state_dict().items():
        assert torch.equal(value, state[name]), name
    told = inputs(paths, 2)
    told["input_ids"] = told["input_ids"][:1]
    told["images"] = told["images"][:1]
    made = again.generate(
        told["input_ids"],
        images=told["images"],
        max_new_tokens=1,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert torch.allclose(made.scores[0], logits(again, told)[:, -1], atol=1e-5)
    half = load_pretrained_model(str(root / "llava-out"), None, "llava-tiny", device="cpu")[1]
    for name, value in bridge_of(half).layer.state_dict().items():
        assert torch.equal(value, state[name]), name
    plain(repo, root / "llava-out")


def plain(repo: Path, checkpoint: Path) -> None:
    """Without the glue the checkpoint does not open; after uninstall() this is no glue."""
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

    from cmibq.integrations import llava

    llava.uninstall()
    try:
        LlavaLlamaForCausalLM.from_pretrained(checkpoint)
    except AttributeError as error:
        complaint = str(error)
    else:
        complaint = "none"
    llava.install()
    assert "has no attribute" in complaint, complaint


def adapter(repo: Path, root: Path) -> None:
    """Train the projector and the layer alone (LLaVA's stage one); open what it saved."""
    paths = assets(root)
    stubs()
    out = root / "llava-adapter"
    more = ("tune_mm_mlp_adapter", "True", "bf16", "True", "gradient_checkpointing", "True")
    more = (*more, "version", "plain", "max_steps", "6")
    model = run(repo, paths, arguments(paths, out, *more, data="pictures.json"))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("mm_projector" in n for n in trained)
    found = losses(out)
    assert sum(found[-2:]) < sum(found[:2]), found
    from llava.model.builder import load_pretrained_model

    from cmibq.errors import ModelError
    from cmibq.integrations.bottleneck import bridge_of

    again = load_pretrained_model(str(out), paths["llm"], "llava-tiny", device="cpu")[1]
    state = bridge_of(again).layer.state_dict()
    for name, value in bridge_of(model).layer.state_dict().items():
        assert torch.equal(value, state[name]), name
    saved = torch.load(out / "mm_projector.bin")
    torch.save({k: v for k, v in saved.items() if ".cm_ibq." not in k}, out / "mm_projector.bin")
    try:
        load_pretrained_model(str(out), paths["llm"], "llava-tiny", device="cpu")
    except ModelError as error:
        complaint = str(error)
    else:
        complaint = "none"
    assert "never seen features" in complaint, complaint


def tiny(paths: dict[str, str], **more: Any) -> Any:
    """Return a random LLaVA with its tower, without training."""
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    config = LlavaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=300,
        mm_vision_tower=paths["tower"],
        mm_hidden_size=16,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        use_mm_proj=True,
        pad_token_id=0,
        **more,
    )
    torch.manual_seed(0)
    made = LlavaLlamaForCausalLM(config)
    made.get_vision_tower().load_model()
    return made.float()


def attributes() -> dict[str, Any]:
    """Return every attribute of the host's classes and modules, and of what they inherit."""
    import llava.model.builder
    import llava.model.llava_arch
    import transformers
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
    from llava.train.llava_trainer import LLaVATrainer

    arch = llava.model.llava_arch
    owners = (arch, arch.LlavaMetaModel, arch.LlavaMetaForCausalLM, LlavaLlamaForCausalLM)
    owners = (*owners, LLaVATrainer, llava.model.builder, transformers.PreTrainedModel)
    owners = (*owners, transformers.PretrainedConfig, transformers.GenerationMixin)
    return {f"{owner}.{name}": value for owner in owners for name, value in vars(owner).items()}


def model(repo: Path, root: Path) -> None:
    """install() twice is once, uninstall() undoes all; rows of text, crops, imports."""
    sys.path.insert(0, str(repo))
    before, finders = attributes(), list(sys.meta_path)
    from cmibq.integrations import llava as glue
    from cmibq.integrations.bottleneck import collect
    from cmibq.nn.ib_layer import IBQuantizedLayer

    for _ in range(2):
        glue.install(LAYER)
    from llava.model.quantization import CMIBQConfig, stage_one_pretrain
    from llava.model.quantization.cm_ibq import IBQuantizedLayer as theirs

    assert theirs is IBQuantizedLayer
    paths = assets(root)
    made = tiny(paths, cm_ibq=LAYER | {"alignment_weight": 0.1}).train()
    bridge = made.get_model().mm_projector.cm_ibq
    assert CMIBQConfig is type(bridge.layer.config)
    told = inputs(paths)
    labels = told["input_ids"].where(torch.arange(9) > 5, -100)
    batch = told | {"labels": labels}
    (part,) = collect(made, batch)
    assert part["features"].shape == (2, 4, 32), "the row of text has no part in it"
    embed, ids = made.get_model().embed_tokens, told["input_ids"]
    want = embed(ids[0, [0, 1, 2, 4, 5]]).mean(0)
    assert torch.allclose(part["task_embedding"][0], want, atol=1e-6)
    optimiser = torch.optim.AdamW(bridge.layer.parameters(), lr=2e-5)
    logs = stage_one_pretrain(bridge.layer, [part] * 20, optimiser, torch.device("cpu"))
    assert logs[-1]["total"] < logs[0]["total"], logs
    seen = bridge.layer.quantizer.running_max.clone()
    text = {"input_ids": ids[2:], "images": told["images"][2:], "labels": labels[2:]}
    made.zero_grad()
    made(**text).loss.backward()
    assert torch.equal(seen, bridge.layer.quantizer.running_max), "zeros are no image"
    assert all(p.grad is not None for p in bridge.parameters())
    crops = [torch.randn(2, 3, 8, 8), torch.randn(3, 3, 8, 8), torch.zeros(1, 3, 8, 8)]
    (part,) = collect(made, batch | {"images": crops})
    assert part["features"].shape == (5, 4, 32)
    assert torch.equal(part["task_embedding"][0], part["task_embedding"][1])
    assert not torch.equal(part["task_embedding"][1], part["task_embedding"][2])
    glue.uninstall()
    after = attributes()
    assert before.keys() == after.keys()
    changed = [name for name, value in before.items() if after[name] is not value]
    assert not changed, changed
    assert sys.meta_path == finders
    assert "llava.model.quantization" not in sys.modules


def following(repo: Path, root: Path) -> None:
    """LLaVA-NeXT: lists of crops, save, open, identical logits (its trainer is not tried here)."""
    sys.path.insert(0, str(repo))
    from cmibq.integrations import llava as glue
    from cmibq.integrations.bottleneck import bridge_of, collect

    glue.install(LAYER)
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

    paths = assets(root)
    made = tiny(paths, cm_ibq=LAYER, mm_patch_merge_type="flat")
    made.train()
    told = inputs(paths, 2)
    told["input_ids"][1, 4] = -200
    told["images"] = [torch.randn(3, 3, 8, 8), torch.randn(5, 3, 8, 8)]
    told["modalities"] = ["image", "image"]
    told["labels"] = told["input_ids"].where(torch.arange(9) > 5, -100)
    (part,) = collect(made, told)
    assert part["features"].shape == (8, 4, 32)
    assert torch.equal(part["task_embedding"][0], part["task_embedding"][2])
    assert not torch.equal(part["task_embedding"][2], part["task_embedding"][3])
    optimiser = torch.optim.AdamW(made.parameters(), lr=2e-3)
    found = []
    for _ in range(5):
        loss = made(**told).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    assert found[-1] < found[0], found
    made.eval()
    asked = {k: v for k, v in told.items() if k != "labels"}
    with torch.no_grad():
        want = made(**asked).logits
        made.save_pretrained(root / "next")
        again = LlavaLlamaForCausalLM.from_pretrained(
            root / "next", attn_implementation=made.config._attn_implementation
        ).eval()
        again.get_vision_tower().load_model()
        assert torch.equal(again(**asked).logits, want)
    assert bridge_of(again) is not None
    glue.uninstall()


if __name__ == "__main__":
    torch.set_num_threads(1)
    part = sys.argv[2]
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "finetune": finetune,
            "adapter": adapter,
            "model": model,
            "next": following,
            "torchrun": torchrun,
        }
        parts[part](Path(sys.argv[1]), Path(folder))
    sys.stdout.write(f"ok {part}\n")
