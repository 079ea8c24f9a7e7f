"""Odd inputs of a search: NaN activations, channels without values, images that cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmibq.errors import DataError, ModelError
from cmibq.io import load as load_package
from cmibq.io import load_scales
from cmibq.ptq import prepare, quantize
from cmibq.recipe import QuantRecipe


def recipe(model: Path, items: Path, out: Path, **more: Any) -> QuantRecipe:
    given: dict[str, Any] = {"method": "mbq", "w_bit": 3, "n_grid": 4, "n_samples": 8}
    given |= {"run_process": True, "w_group": 32, "threads": 1, "verify": False}
    places = {"model_args": f"pretrained={model}", "data_path": str(items)}
    return QuantRecipe(**given | places | {"output_path": str(out)} | more)


def changed(model: Path, out: Path, values: dict[str, tuple[Any, float]]) -> Path:
    """Copy a model with some weights set: name -> (index, value)."""
    shutil.copytree(model, out)
    tensors = load_file(out / "model.safetensors")
    for ending, (index, value) in values.items():
        (name,) = [n for n in tensors if n.endswith(ending)]
        tensors[name][index] = value
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def test_nan_activations_name_the_group(tmp_path: Path, llava_dir: Path, items_path: Path) -> None:
    """All weights are finite; a norm's are so large that what it gives is not."""
    huge = {".layers.0.input_layernorm.weight": (slice(None), 3.0e38)}
    model = changed(llava_dir, tmp_path / "m", huge)
    with pytest.raises(ModelError, match="input of qkv holds NaN or inf; repair the model"):
        quantize(recipe(model, items_path, tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("effort", ["full", "race"])
@pytest.mark.parametrize("method", ["awq", "mbq", "smoothquant"])
def test_channels_without_values_get_finite_scales(
    tmp_path: Path, llava_dir: Path, items_path: Path, method: str, effort: str
) -> None:
    """One channel of the inputs is 0 always, one column of a weight, and one row of another."""
    layer = ".layers.0."
    zeros = {
        f"{layer}input_layernorm.weight": (5, 0.0),
        f"{layer}mlp.gate_proj.weight": ((slice(None), 7), 0.0),
        f"{layer}mlp.up_proj.weight": ((slice(None), 7), 0.0),
        f"{layer}mlp.down_proj.weight": (3, 0.0),
    }
    model = changed(llava_dir, tmp_path / "m", zeros)
    scales = tmp_path / "s.safetensors"
    asked = recipe(model, items_path, tmp_path / "out", method=method, effort=effort)
    asked = QuantRecipe(**{**asked.__dict__, "scale_path": str(scales)})
    made = quantize(asked, progress=False)
    for entry in load_scales(scales).entries:
        assert bool((torch.isfinite(entry.scales) & (entry.scales > 0)).all())
    assert all(0 <= e < 1 for e in made.layer_errors.values())
    assert load_package(tmp_path / "out").manifest.layers


def test_an_unreadable_image_is_named_before_anything_is_done(
    tmp_path: Path, llava_dir: Path, items_path: Path
) -> None:
    shutil.copytree(items_path.parent / "images", tmp_path / "images")
    items = json.loads(items_path.read_text())
    (tmp_path / "items.json").write_text(json.dumps(items))
    for item in items:
        (tmp_path / item["image"]).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(DataError, match=r"image .*png' cannot be read .*; replace it"):
        prepare(recipe(llava_dir, tmp_path / "items.json", tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "items.json"]
