from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq import ptq
from cmibq.data import batches, encode, read_items
from cmibq.errors import ConfigError, DataError, ModelError
from cmibq.io import load as load_package
from cmibq.io import load_scales, save_scales
from cmibq.models import load
from cmibq.nn import PackedLinear
from cmibq.ptq import parts
from cmibq.ptq.quantize import quantize
from cmibq.recipe import QuantRecipe
from tests.fixtures import write_llava

FAST: dict[str, Any] = {"n_grid": 4, "n_samples": 12, "run_process": True, "w_group": 32}
MODULE = sys.modules["cmibq.ptq.quantize"]  # the package has a function of that name
METHODS = ("rtn", "awq", "smoothquant", "mbq")


def recipe(folder: Path, items: Path | None, out: Path | None, **fields: Any) -> QuantRecipe:
    given: dict[str, Any] = FAST | {"model_args": f"pretrained={folder}"}
    given |= {"data_path": str(items)} if items else {}
    given |= {"output_path": str(out)} if out else {}
    return QuantRecipe(**given | fields)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("shape", ["mha", "gqa"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("w_bit", "a_bit"), [(4, 16), (3, 16), (4, 8)])
def test_every_method_makes_a_package(
    shape: str,
    method: str,
    w_bit: int,
    a_bit: int,
    tmp_path: Path,
    items_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    model = request.getfixturevalue("llava_dir" if shape == "mha" else "llava_gqa_dir")
    blocks = 2 if shape == "mha" else 3
    asked = recipe(
        model,
        items_path,
        tmp_path / "out",
        method=method,
        w_bit=w_bit,
        a_bit=a_bit,
        reweight=method == "mbq",
    )
    made = quantize(asked, progress=False)
    assert not made.skipped
    assert names(tmp_path) == ["out"]
    package = load_package(tmp_path / "out")
    assert len(package.manifest.layers) == 7 * blocks == len(made.layer_errors)
    for spec in package.manifest.layers.values():
        assert (spec.bits, spec.group_size, spec.symmetric) == (w_bit, 32, a_bit < 16)
        assert spec.act_bits == a_bit
    assert package.manifest.metadata["fingerprint"] == made.fingerprint
    assert package.manifest.metadata["calibration"]["samples"] == 12
    assert all(0 < e < 0.7 for e in made.layer_errors.values())
    groups = {"rtn": 0, "smoothquant": 2}.get(method, 4) * blocks
    assert len(made.groups) == groups
    for group in made.groups if method in ("awq", "mbq") else []:
        assert len(group["losses"]) == 4
        assert min(group["losses"]) <= group["losses"][0]
    again = quantize(asked, progress=False)
    assert again.skipped
    assert again.layer_errors == made.layer_errors
    assert again.groups == made.groups


def logits(model: Any, items: Path, processor: Any) -> torch.Tensor:
    (batch,) = batches(encode(read_items(items), processor), processor)
    with torch.no_grad():
        made: torch.Tensor = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=batch.pixel_values[batch.image_index],  # type: ignore[index]
        ).logits
    return made[batch.attention_mask.bool()]


@pytest.mark.parametrize("method", ["rtn", "mbq"])
def test_packed_and_rounded_float_models_agree(
    method: str, tmp_path: Path, llava_dir: Path, items_path: Path
) -> None:
    from cmibq.models import skeleton

    packed = recipe(llava_dir, items_path, tmp_path / "packed", method=method)
    quantize(packed, progress=False)
    rounded = recipe(llava_dir, items_path, tmp_path / "rounded", method=method, pseudo_quant=True)
    assert not quantize(rounded, progress=False).skipped
    assert quantize(rounded, progress=False).skipped
    as_float = load(tmp_path / "rounded")
    assert not any(isinstance(m, PackedLinear) for m in as_float.model.modules())
    package = load_package(tmp_path / "packed")
    model = package.fill_(skeleton(llava_dir))
    got = logits(model, items_path, as_float.processor)
    want = logits(as_float.model, items_path, as_float.processor)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_equal_runs_give_equal_files(tmp_path: Path, llava_dir: Path, items_path: Path) -> None:
    for n in "ab":
        quantize(
            recipe(llava_dir, items_path, tmp_path / n, method="mbq", reweight=True),
            progress=False,
        )
    for name in names(tmp_path / "a"):
        if name != "manifest.json":
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_recording_group_by_group_changes_nothing(
    tmp_path: Path, llava_gqa_dir: Path, items_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for n in "ab":
        asked = recipe(llava_gqa_dir, items_path, tmp_path / n, method="awq")
        made.append(quantize(asked, progress=False))
        monkeypatch.setattr("cmibq.ptq.blocks._VALUES_AT_ONCE", 1)
    assert made[0].layer_errors == made[1].layer_errors
    one, other = ((tmp_path / n / "cmibq.safetensors").read_bytes() for n in "ab")
    assert one == other


def test_scales_are_written_and_applied_later(
    tmp_path: Path, llava_dir: Path, items_path: Path
) -> None:
    scales = tmp_path / "s.pt"
    searched = recipe(llava_dir, items_path, None, method="awq", scale_path=str(scales))
    assert not quantize(searched, progress=False).skipped
    assert names(tmp_path) == ["s.pt"]
    assert quantize(searched, progress=False).skipped
    assert [e.prev.rsplit(".", 1)[1] for e in load_scales(scales).entries[:4]] == [
        "input_layernorm",
        "v_proj",
        "post_attention_layernorm",
        "up_proj",
    ]
    both = recipe(llava_dir, items_path, tmp_path / "both", method="awq", clip=False)
    quantize(both, progress=False)
    later = recipe(
        llava_dir,
        None,
        tmp_path / "later",
        method="awq",
        run_process=False,
        scale_path=str(scales),
        clip=False,  # ranges would be chosen without data here
    )
    assert quantize(later, progress=False).layer_errors == {}
    one, other = ((tmp_path / n / "cmibq.safetensors").read_bytes() for n in ("both", "later"))
    assert one == other
    with pytest.raises(ConfigError, match=r"s\.pt was made with w_bit 4, this run has 3"):
        quantize(
            dataclasses.replace(later, w_bit=3, output_path=str(tmp_path / "x")), progress=False
        )


def test_scales_of_another_model_are_refused(
    tmp_path: Path, llava_dir: Path, llava_gqa_dir: Path, items_path: Path
) -> None:
    scales = str(tmp_path / "s.safetensors")
    quantize(recipe(llava_dir, items_path, None, method="awq", scale_path=scales), progress=False)
    other = recipe(
        llava_gqa_dir, None, tmp_path / "x", method="awq", run_process=False, scale_path=scales
    )
    with pytest.raises(ConfigError, match="with other weights than the model of this run"):
        quantize(other, progress=False)
    save_scales(scales, load_scales(scales).entries)  # as files of other programs, which do not say
    with pytest.raises(ModelError, match="belong to no group of this model"):
        quantize(other, progress=False)
    assert names(tmp_path) == ["s.safetensors"]


def test_stale_outputs_are_refused_or_replaced(
    tmp_path: Path, llava_dir: Path, items_path: Path
) -> None:
    fields = {"method": "awq", "scale_path": str(tmp_path / "s.pt")}
    quantize(recipe(llava_dir, items_path, tmp_path / "out", **fields), progress=False)
    before = (tmp_path / "s.pt").read_bytes()
    with pytest.raises(ConfigError, match="the scales are stale"):
        quantize(recipe(llava_dir, items_path, tmp_path / "out", w_bit=3, **fields), progress=False)
    with pytest.raises(ConfigError, match=r"output_path '.*out' holds something else"):
        quantize(recipe(llava_dir, items_path, tmp_path / "out", w_bit=3), progress=False)
    assert (tmp_path / "s.pt").read_bytes() == before
    made = quantize(
        recipe(llava_dir, items_path, tmp_path / "out", w_bit=3, overwrite=True, **fields),
        progress=False,
    )
    assert not made.skipped
    assert load_package(tmp_path / "out").manifest.recipe["w_bit"] == 3
    assert (tmp_path / "s.pt").read_bytes() != before


def test_a_damaged_package_is_not_taken_for_finished(tmp_path: Path, llava_dir: Path) -> None:
    asked = recipe(llava_dir, None, tmp_path / "out", method="rtn")
    quantize(asked, progress=False)
    path = tmp_path / "out" / "cmibq.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="a damaged package"):
        quantize(asked, progress=False)


def test_rtn_needs_no_data(tmp_path: Path, llava_dir: Path) -> None:
    made = quantize(recipe(llava_dir, None, tmp_path / "out", method="rtn"), progress=False)
    assert made.layer_errors == {}
    assert load_package(tmp_path / "out").manifest.metadata["calibration"]["samples"] == 0


def test_text_calibration(tmp_path: Path, llava_dir: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("which digit is left\nred blue one\n" * 40)
    asked = recipe(llava_dir, texts, tmp_path / "out", method="awq", calib_data="pileval")
    made = quantize(asked, progress=False)
    assert load_package(tmp_path / "out").manifest.metadata["calibration"]["image_tokens"] == 0
    assert made.layer_errors


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_checkpoints(tmp_path: Path, items_path: Path, dtype: str) -> None:
    model = write_llava(tmp_path / "model", dtype=dtype)
    made = quantize(
        recipe(model, items_path, tmp_path / "out", method="mbq", reweight=True), progress=False
    )
    assert max(made.layer_errors.values()) < 0.3
    package = load_package(tmp_path / "out")
    from cmibq.io.tensors import read_tensors

    tensors, _ = read_tensors(package.path / "cmibq.safetensors")
    norm = next(t for n, t in tensors.items() if n.endswith("input_layernorm.weight"))
    assert norm.dtype == getattr(torch, dtype)
    assert {t.dtype for n, t in tensors.items() if n.endswith(".scales")} == {torch.float16}


def test_threads_are_put_back(tmp_path: Path, llava_dir: Path) -> None:
    before = torch.get_num_threads()
    asked = recipe(llava_dir, None, tmp_path / "out", method="rtn", threads=1)
    quantize(asked, progress=False)
    assert torch.get_num_threads() == before
    assert load_package(tmp_path / "out").manifest.environment["threads"] == 1


def test_the_models_folder_stays_as_it_was(
    tmp_path: Path, llava_dir: Path, items_path: Path
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in llava_dir.iterdir()}
    quantize(recipe(llava_dir, items_path, tmp_path / "out", method="awq"), progress=False)
    assert {p.name: p.stat().st_mtime_ns for p in llava_dir.iterdir()} == before


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"method": "mbx"}, ConfigError, "unknown search 'mbx'; did you mean 'mbq'"),
    ({"calib_data": "cocoa"}, ConfigError, "did you mean 'coco'"),
    ({"w_group": 48}, ModelError, r"q_proj: w_group 48 does not divide its 64 inputs"),
    ({"data_path": ""}, DataError, "data_path is empty"),
    ({"data_path": "nowhere.json"}, DataError, "'nowhere.json' is not a file"),
    ({"image_folder": "nowhere"}, DataError, "image_folder 'nowhere' is not a folder"),
    ({"model_args": "pretrained=nowhere"}, ModelError, "'nowhere' does not exist"),
    ({"model_args": ""}, ConfigError, "write pretrained=DIR"),
    ({"model": "blip_2"}, ModelError, "supported are auto, "),
    ({"output_path": ""}, ConfigError, "output_path is empty"),
    ({"scale_path": "s.txt"}, ConfigError, "must end in one of .pt, .pth, .safetensors"),
    ({"method": "rtn", "scale_path": "s.pt"}, ConfigError, "method 'rtn', which has none"),
    ({"run_process": False}, ConfigError, "set run_process to search them"),
]


@pytest.mark.parametrize(("fields", "kind", "message"), BAD)
def test_bad_recipes_are_told_before_weights_are_read(
    fields: dict[str, Any],
    kind: type[Exception],
    message: str,
    tmp_path: Path,
    llava_dir: Path,
    items_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MODULE, "load", lambda *a, **k: pytest.fail("weights read"))
    asked = recipe(llava_dir, items_path, tmp_path / "out", **fields)
    with pytest.raises(kind, match=message):
        ptq.check(asked)
    with pytest.raises(kind, match=message):
        quantize(asked, progress=False)
    assert names(tmp_path) == []


def test_nan_weights_are_named_before_calibration(
    tmp_path: Path, llava_dir: Path, items_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(llava_dir, model)
    tensors = load_file(model / "model.safetensors")
    (key,) = [n for n in tensors if n.endswith("layers.1.mlp.down_proj.weight")]
    tensors[key][3, 4] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(parts, "enter", lambda *a, **k: pytest.fail("calibrated"))
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj: 1 of 8192 weights are NaN"):
        quantize(recipe(model, items_path, tmp_path / "out", method="awq"), progress=False)
    assert names(tmp_path) == ["model"]


def test_bad_items_are_told_before_weights_are_read(
    tmp_path: Path, llava_dir: Path, items_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "load", lambda *a, **k: pytest.fail("weights read"))
    items = json.loads(items_path.read_text())
    path = tmp_path / "items.jsonl"
    images = str(items_path.parent)
    path.write_text("\n".join([json.dumps(items[0]), "{", json.dumps(items[1])]))
    with pytest.raises(DataError, match=r"items\.jsonl, line 2: not valid JSON"):
        quantize(recipe(llava_dir, path, tmp_path / "o", image_folder=images), progress=False)
    path.write_text(json.dumps(items[0] | {"image": "images/gone.png"}))
    with pytest.raises(DataError, match=r"line 1: image '.*gone\.png' does not exist"):
        quantize(recipe(llava_dir, path, tmp_path / "o", image_folder=images), progress=False)
    assert names(tmp_path) == ["items.jsonl"]


def test_reweight_without_images(tmp_path: Path, llava_dir: Path, items_path: Path) -> None:
    items = [{"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "red"}]}]
    path = tmp_path / "items.json"
    path.write_text(json.dumps(items))
    with pytest.raises(DataError, match="no calibration sample has image tokens"):
        quantize(recipe(llava_dir, path, tmp_path / "o", reweight=True), progress=False)
