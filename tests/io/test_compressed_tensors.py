from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq import io, models, ptq
from cmibq.data import collate, encode, read_items
from cmibq.errors import ConfigError, ModelError, PackageError
from cmibq.eval import open_model
from cmibq.io.compressed_tensors import config_of, from_compressed, refusal, to_compressed
from cmibq.io.manifest import LayerSpec
from cmibq.nn import PackedLinear, convert_, iter_packed
from cmibq.quant import PerGroup, QuantSpec
from cmibq.recipe import QuantRecipe

WIDTHS = range(2, 9)


def layer(bits: int, cols: int = 40, group: int = 8) -> tuple[LayerSpec, dict[str, torch.Tensor]]:
    torch.manual_seed(bits)
    linear = torch.nn.Linear(cols, 6, bias=False)
    packed = PackedLinear.from_linear(linear, QuantSpec(bits, PerGroup(group), True))
    spec = LayerSpec((6, cols), bits, group, True)
    return spec, {f"up.{name}": t for name, t in packed.state_dict().items()}


@pytest.mark.parametrize("bits", WIDTHS)
def test_words_by_their_definition(bits: int) -> None:
    spec, state = layer(bits)
    made = to_compressed(state, {"up": spec})
    words = made["up.weight_packed"]
    assert words.dtype == torch.int32
    assert words.shape == (6, -(-40 * bits // 32))
    levels = torch.zeros(6, 40)
    for row in range(6):
        number = sum((int(w) & 0xFFFFFFFF) << (32 * i) for i, w in enumerate(words[row]))
        for col in range(40):
            levels[row, col] = (number >> (col * bits) & ((1 << bits) - 1)) - (1 << (bits - 1))
        assert number >> (40 * bits) == 0
    weight = levels * made["up.weight_scale"].float().repeat_interleave(8, 1)
    packed = PackedLinear(40, 6, bits=bits, group_size=8, symmetric=True)
    packed.load_state_dict({k.removeprefix("up."): v for k, v in state.items()})
    assert torch.equal(weight, packed.dequantize())
    assert made["up.weight_shape"].tolist() == [6, 40]


@pytest.mark.parametrize("bits", WIDTHS)
def test_there_and_back(bits: int) -> None:
    spec, state = layer(bits)
    state["up.bias"] = torch.ones(6)
    state["norm.weight"] = torch.ones(3)
    back = from_compressed(to_compressed(state, {"up": spec}), {"up": spec})
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_the_package_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("compressed_tensors") is None:
        pytest.skip("compressed-tensors is not installed")
    from compressed_tensors.compressors.pack_quantized.helpers import (  # type: ignore[import-not-found,unused-ignore]
        pack_to_int32,
        unpack_from_int32,
    )

    for bits in WIDTHS:
        spec, state = layer(bits)
        words = to_compressed(state, {"up": spec})["up.weight_packed"]
        levels = unpack_from_int32(words, bits, torch.Size([6, 40]))
        assert torch.equal(pack_to_int32(levels, bits), words)


def test_what_the_layout_cannot_hold() -> None:
    asymmetric = {"a": LayerSpec((64, 64), 4, 32, symmetric=False)}
    mixed = {"b": LayerSpec((32, 64), (2, 4), 32, symmetric=True)}
    assert "zero points" in str(refusal(asymmetric))
    assert "mixed bits within one layer" in str(refusal(mixed))
    for layers in (asymmetric, mixed):
        with pytest.raises(ModelError, match="write it with format cmibq"):
            config_of(layers)


def test_one_config_group_per_kind_of_layer() -> None:
    layers = {f"model.layers.{i}.up": LayerSpec((64, 64), 4, 32, True) for i in range(12)}
    layers |= {f"model.layers.{i}.down": LayerSpec((64, 64), 4 if i else 8, 32, True)
               for i in range(12)}  # fmt: skip
    layers["lm_head"] = LayerSpec((64, 64), 8, 0, True, act_bits=8)
    groups = config_of(layers)["config_groups"]
    assert len(groups) == 3
    for group in groups.values():
        weights = group["weights"]
        for name, spec in layers.items():
            told = any(
                re.match(target.removeprefix("re:"), seen)
                for target in group["targets"]
                for seen in {name, name.removeprefix("model.")}
            )
            size = weights["group_size"] or 0
            same = (weights["num_bits"], size) == (spec.bits, spec.group_size)
            acts = group["input_activations"]
            same = same and (8 if acts else 16) == spec.act_bits
            assert told == same, name
    assert not any(re.match(t[3:], "model.layers.1.downs") for t in groups["group_0"]["targets"])


def test_damage_is_named() -> None:
    spec, state = layer(4)
    good = to_compressed(state, {"up": spec})
    for change, told in (
        ({"up.weight_packed": good["up.weight_packed"][:, 1:]}, r"weight_packed is \[6, 4\]"),
        ({"up.weight_shape": torch.tensor([5, 40])}, r"weight_shape is \[5, 40\]"),
        ({"up.weight_scale": good["up.weight_scale"].double() / 3}, "no float16 number"),
    ):
        with pytest.raises(PackageError, match=told):
            from_compressed(good | change, {"up": spec})
    del good["up.weight_scale"]
    with pytest.raises(PackageError, match=r"lacks 'up\.weight_scale'"):
        from_compressed(good, {"up": spec})


def write(model: Path, items: Path, out: Path, dtype: torch.dtype = torch.float32) -> io.Package:
    """Write a model with other bits in every block."""
    loaded = models.load(model)
    loaded.model.to(dtype)
    loaded.model.config.dtype = dtype  # type: ignore[union-attr]
    for bits, (name, _) in enumerate(loaded.adapter.blocks(loaded.model), 3):
        targets = [n for n in loaded.adapter.targets(loaded.model) if n.startswith(f"{name}.")]
        convert_(loaded.model, dict.fromkeys(targets, QuantSpec(bits, PerGroup(32), True)))
    batch = collate(encode(read_items(items)[:1], loaded.processor), loaded.processor)
    assert batch.pixel_values is not None
    probe = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    probe["pixel_values"] = batch.pixel_values.to(dtype)
    return io.save(
        loaded.model, model, out, recipe={}, probe=probe, layout=io.best_layout(loaded.model)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_package_in_this_layout(
    llava_gqa_dir: Path, items_path: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    package = write(llava_gqa_dir, items_path, tmp_path / "out", dtype)
    assert package.manifest.layout == "compressed-tensors"
    assert json.loads((package.path / "manifest.json").read_text())["version"] == 3
    assert {spec.bits for spec in package.manifest.layers.values()} == {3, 4, 5}
    assert (package.path / "model.safetensors").is_file()
    assert package.config["dtype"] == "float32"
    loaded, opened = open_model(package.path)
    assert opened is not None
    assert io.check_probe(loaded.model, opened) == io.ProbeCheck(True, 0.0)
    assert sum(1 for _ in iter_packed(loaded.model)) == 21


def test_config_and_manifest_must_agree(
    llava_gqa_dir: Path, items_path: Path, tmp_path: Path
) -> None:
    package = write(llava_gqa_dir, items_path, tmp_path / "out")
    file = package.path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    file.write_text(json.dumps(config))
    with pytest.raises(PackageError, match=r"config\.json"):
        io.load(package.path)


STOCK = """
import sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
probe = load_file(sys.argv[1] + "/probe.safetensors")
want = probe.pop("logits")
with torch.no_grad():
    got = model(**probe).logits
for name, weight in load_file(sys.argv[2]).items():
    assert torch.equal(model.get_submodule(name).weight, weight), name
try:
    import cmibq
    raise SystemExit("cmibq can be imported here")
except ImportError:
    print("difference", float((got - want).abs().max()))
"""


@pytest.mark.host
def test_stock_transformers_opens_it(llava_gqa_dir: Path, items_path: Path, tmp_path: Path) -> None:
    """``CMIBQ_STOCK_PYTHON`` names a Python with transformers and compressed-tensors only."""
    python = os.environ.get("CMIBQ_STOCK_PYTHON", "")
    if not python:
        pytest.skip("CMIBQ_STOCK_PYTHON is not set")
    from safetensors.torch import save_file

    package = write(llava_gqa_dir, items_path, tmp_path / "out")
    loaded, _ = open_model(package.path)
    save_file({n: m.dequantize() for n, m in iter_packed(loaded.model)}, tmp_path / "weights")
    command = [python, "-c", STOCK, str(package.path), str(tmp_path / "weights")]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("difference"), done.stderr
    assert float(done.stdout.split()[1]) < 1e-3


def test_formats_of_a_recipe(tmp_path: Path, llava_dir: Path) -> None:
    def run(name: str, **fields: Any) -> str:
        recipe = QuantRecipe(
            model_args=f"pretrained={llava_dir}",
            method="rtn",
            w_group=32,
            output_path=str(tmp_path / name),
            verify=False,
            **fields,
        )
        ptq.quantize(recipe, progress=False)
        return io.load(tmp_path / name).manifest.layout

    assert run("weights") == "cmibq"
    assert run("symmetric", w_sym=True) == "compressed-tensors"
    assert run("activations", a_bit=8) == "compressed-tensors"
    assert run("asked", format="compressed-tensors") == "compressed-tensors"
    assert run("ours", a_bit=8, format="cmibq") == "cmibq"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"format": "gptq"}, "format is 'gptq'; allowed are auto, cmibq, compressed-tensors"),
        ({"format": "compressed-tensors", "w_sym": False}, "loads symmetric weights only"),
        ({"w_sym": False, "a_bit": 8}, "quantised activations need symmetric weights"),
        ({"format": "compressed-tensors", "pseudo_quant": True}, "leave one of them out"),
        ({"w_sym": True, "w_bit": 1, "pseudo_quant": True}, "they need w_bit 2..8"),
    ],
)
def test_recipes_that_contradict_themselves(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        QuantRecipe(**fields)
