"""Packages with mixed bits inside a layer, and with layers that a model has more than once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cmibq import io
from cmibq.errors import ModelError, PackageError
from cmibq.io.manifest import LayerSpec
from cmibq.io.tensors import read_tensors
from cmibq.nn import PackedLinear, QuantLinear, convert_, prepare_
from cmibq.quant import PerGroup, QuantSpec
from tests.io.test_package import make_source, retensor, set_value, sign

MIXED = QuantSpec((2, 4) * 4 + (8,), PerGroup(32))


class Twice(nn.Module):
    """A layer used under two names, two layers with one weight, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 136)
        self.again = self.first
        self.back = nn.Linear(136, 64, bias=False)
        self.tied = nn.Linear(136, 64, bias=False)
        self.tied.weight = self.back.weight
        self.norm = nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.back(self.first(x)))
        logits: torch.Tensor = self.tied(self.again(x))
        return logits


def skeleton() -> Twice:
    with torch.device("meta"):
        return Twice()


def make_model() -> Twice:
    torch.manual_seed(0)
    model = Twice()
    back = QuantSpec((3, 3, 2, 8), PerGroup(-1), symmetric=True)
    convert_(model, {"first": MIXED, "back": back, "tied": back})
    return model.eval()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> io.Package:
    """A package; do not write to it."""
    folder = tmp_path_factory.mktemp("mixed")
    probe = {"x": torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))}
    make_source(folder / "source")
    return io.save(make_model(), folder / "source", folder / "p", recipe={}, probe=probe)


@pytest.fixture
def copied(package: io.Package, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package.path, tmp_path / "copied"))


def test_layers_that_are_shared_stay_shared() -> None:
    model = make_model()
    assert model.first is model.again
    assert model.back is model.tied
    faked = Twice()
    prepare_(faked, {"again": MIXED})
    assert isinstance(faked.first, QuantLinear)
    assert faked.first is faked.again
    other = QuantSpec(4, PerGroup(8))
    with pytest.raises(ModelError, match="again: is the same layer as first, but has another"):
        convert_(Twice(), {"first": MIXED, "again": other})
    apart = Twice()
    convert_(apart, {"back": other, "tied": QuantSpec(3, PerGroup(8))})
    assert apart.back is not apart.tied


def test_reload_is_exact_and_stores_everything_once(package: io.Package) -> None:
    tensors, _ = read_tensors(package.path / "cmibq.safetensors")
    layers = ("first.bias", "first.qweight", "first.scales", "first.strip_bits", "first.zeros")
    back = ("back.qweight", "back.scales", "back.strip_bits")
    assert sorted(tensors) == sorted([*layers, *back, "norm.bias", "norm.weight"])
    assert package.manifest.tied == {"again": "first", "tied": "back"}
    assert package.manifest.layers["first"].bits == MIXED.bits
    model = package.fill_(skeleton())
    assert io.check_probe(model, package) == io.ProbeCheck(True, 0.0)
    assert model.first is model.again
    assert isinstance(model.tied, PackedLinear)
    assert model.back is model.tied
    want = make_model().state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, want[name]), name
    assert io.load(package.path).manifest == package.manifest


def test_saved_again_it_is_the_same(package: io.Package, tmp_path: Path) -> None:
    model = package.fill_(skeleton())
    model(torch.ones(1, 64))  # to tiles
    make_source(tmp_path / "source")
    again = io.save(model, tmp_path / "source", tmp_path / "p", recipe={})
    for name in ("cmibq.safetensors", "buffers.safetensors", "config.json"):
        assert again.manifest.files[name] == package.manifest.files[name]


def test_the_version_is_the_lowest_that_holds_it(package: io.Package, tmp_path: Path) -> None:
    found = json.loads((package.path / "manifest.json").read_text())
    assert found["version"] == 2
    assert found["layers"]["back"]["bits"] == "3328"
    config = json.loads((package.path / "config.json").read_text())["quantization_config"]
    assert (config["format"], config["tied"]) == (2, found["tied"])
    model = nn.Sequential(nn.Linear(32, 32))
    convert_(model, {"0": QuantSpec((4, 4), PerGroup(16))})
    plain = io.save(model, make_source(tmp_path / "s"), tmp_path / "p", recipe={})
    found = json.loads((plain.path / "manifest.json").read_text())
    assert (found["version"], found["layers"]["0"]["bits"]) == (1, 4)
    config = json.loads((plain.path / "config.json").read_text())["quantization_config"]
    assert (config["format"], "tied" in config) == (1, False)


def test_file_bytes_follow_the_bits(tmp_path: Path) -> None:
    """As many rows of 2 as of 4 bits take what 3 bits take, scales and zero points included."""
    size = {}
    for name, bits in (("mixed", (2, 4) * 16), ("uniform", 3), ("wide", 4)):
        model = nn.Sequential(nn.Linear(512, 512, bias=False))
        convert_(model, {"0": QuantSpec(bits, PerGroup(128))})
        folder = tmp_path / name
        make_source(folder.with_suffix(".source"))
        saved = io.save(model, folder.with_suffix(".source"), folder, recipe={})
        size[name] = (folder / "cmibq.safetensors").stat().st_size
        layer = model[0]
        assert layer.nbytes() == saved.manifest.layers["0"].nbytes
        assert size[name] - layer.nbytes() < 500  # the header
    assert abs(size["mixed"] / size["uniform"] - 1) < 0.02
    assert size["mixed"] < 0.8 * size["wide"]


BAD: dict[str, tuple[Any, str]] = {
    "text": ("2x48", "bits is '2x48'; allowed is one digit per 16 outputs"),
    "nothing": ("", "bits is ''; allowed is one digit"),
    "few": ("332", "bits has 3 widths for 64 outputs; give one width, or 4"),
    "many": ("33288", "bits has 5 widths for 64 outputs"),
    "too wide": ("3329", r"bits\[3\] is 9; allowed are 2\.\.8"),
    "too small": ("3321", r"bits\[3\] is 1; allowed are 2\.\.8"),
    "equal": ("3333", "bits has equal widths; write them as 3"),
    "list": ([3, 3, 2, 8], "bits is .*allowed are 1..8"),
    "other digits": ("33²8", "bits is .*one digit"),
    "another order": ("3382", "strip_bits of layer back are not those of the manifest"),
    "uniform": (3, r"back\.strip_bits|strip_bits of layer back"),
}


def set_bits(folder: Path, bits: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["layers"]["back"]["bits"] = bits
    (folder / "config.json").write_text(json.dumps(config))
    sign(folder, lambda value: value["layers"]["back"].update(bits=bits))


@pytest.mark.parametrize(("bits", "message"), BAD.values(), ids=BAD)
def test_bits_that_cannot_be(copied: Path, bits: Any, message: str) -> None:
    set_bits(copied, bits)
    with pytest.raises(PackageError, match=message):
        io.load(copied).fill_(skeleton())


def test_an_old_version_cannot_hold_this(copied: Path) -> None:
    sign(copied, lambda value: value.update(version=1))
    with pytest.raises(PackageError, match=r"version is 1, but what it holds came with 2"):
        io.load(copied)


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "other widths": (set_value("back.strip_bits", 4), "strip_bits of layer back"),
    "no widths": (lambda t: t.pop("back.strip_bits"), r"lacks back\.strip_bits"),
    "few codes": (lambda t: t.update({"back.qweight": t["back.qweight"][1:]}), r"back\.qweight is"),
    "a second copy": (lambda t: t.update({"tied.scales": t["back.scales"] * 1}), "tied.scales"),
    "zero scale": (set_value("back.scales", 0.0), "back lacks scales"),
}


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit(
    copied: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    retensor(copied, change)
    with pytest.raises(PackageError, match=message):
        io.load(copied).fill_(skeleton())


def test_ties_that_do_not_fit(copied: Path) -> None:
    other = skeleton()
    other.again = nn.Linear(64, 64, device="meta")
    with pytest.raises(PackageError, match=r"layer again is \(64, 64\) .* tied to first, \(136"):
        io.load(copied).fill_(other)
    del other.again
    with pytest.raises(PackageError, match="the model has no layer again"):
        io.load(copied).fill_(other)


def test_layer_spec_and_json() -> None:
    layer = LayerSpec((20, 64), (2, 4), 32, True)
    assert LayerSpec.from_json(layer.to_json()) == layer
    assert json.loads(json.dumps(layer.to_json()))["bits"] == "24"
    # codes 16 * 16 + 4 * 32, scales 20 * 2 * 2, one byte per strip
    assert layer.nbytes == 256 + 128 + 80 + 2
