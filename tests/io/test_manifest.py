from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmibq.errors import PackageError
from cmibq.io.manifest import FileInfo, LayerSpec, Manifest, _checksum, read_manifest


def example() -> Manifest:
    return Manifest(
        cmibq="0.1.0",
        files={"a.json": FileInfo("00" * 32, 3), "templates/b.jinja": FileInfo("11" * 32, 0)},
        layers={
            "fc": LayerSpec((8, 64), 4, 32, False),
            "o": LayerSpec((8, 16), 3, -1, True, act_bits=8, bias=True),
        },
        recipe={"w_bit": 4, "note": "ü"},
        metadata={"anything": [1, {"deep": None}]},
        constants={"shift": 3},
    )


def write(folder: Path, changes: dict[str, Any], *, signed: bool = True) -> None:
    value = example().to_json() | changes
    value = {k: v for k, v in value.items() if v is not None}
    if signed:
        value["checksum"] = _checksum(value)
    (folder / "manifest.json").write_text(json.dumps(value, indent=1))


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path, {})
    assert read_manifest(tmp_path) == example()


def test_sizes_worked_by_hand() -> None:
    layer = LayerSpec((8, 64), 4, 32, False)
    # codes 8*64/2 = 256, scales 8*2*2 = 32, zero points 2*4 bits = 1 byte per row = 8
    assert (layer.groups, layer.weights, layer.nbytes) == (2, 512, 296)
    row = LayerSpec((8, 16), 3, -1, True)
    assert (row.groups, row.nbytes) == (1, 8 * (6 + 2))
    assert example().packed_bytes == 296 + 64
    assert example().bits_per_weight == 8 * 360 / 640


BAD = {
    "newer": ({"version": 4}, "version 4 is newer than 3.*update"),
    "version 0": ({"version": 0}, "version is 0"),
    "version text": ({"version": "1"}, "version is '1'"),
    "other format": ({"format": "gguf"}, "no manifest of a cmibq package"),
    "unknown key": ({"recipes": {}}, "unknown key 'recipes'; did you mean 'recipe'"),
    "missing key": ({"layers": None}, "layers is missing"),
    "wrong kind": ({"files": []}, "files is missing or of the wrong kind"),
    "file outside": ({"files": {"../a": {"sha256": "", "bytes": 0}}}, "does not lie in"),
    "file absolute": ({"files": {"/a": {"sha256": "", "bytes": 0}}}, "does not lie in"),
    "file itself": ({"files": {"manifest.json": {"sha256": "", "bytes": 0}}}, "does not lie"),
    "file entry": ({"files": {"a": {"sha": ""}}}, "entry of file 'a'"),
    "file kind": ({"files": {"a": {"sha256": 1, "bytes": 0}}}, "entry of file 'a'"),
    "layer entry": ({"layers": {"fc": {"bits": 4}}}, "layer 'fc'"),
    "layer list": ({"layers": {"fc": []}}, "layer 'fc'"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, changes)
    with pytest.raises(PackageError, match=message):
        read_manifest(tmp_path)


LAYERS = {
    "bits 0": ({"bits": 0}, "bits is 0; allowed are 1..8"),
    "bits 9": ({"bits": 9}, "bits is 9"),
    "bits 255": ({"bits": 255}, "bits is 255"),
    "bits true": ({"bits": True}, "bits is True"),
    "group": ({"group_size": 7}, "group_size is 7; it must divide 64"),
    "shape": ({"shape": [8]}, "shape is"),
    "negative": ({"shape": [-8, 64]}, "shape is"),
    "huge": ({"shape": [2**39, 2**39]}, "shape is"),
    "act_bits": ({"act_bits": 4}, "act_bits is 4"),
    "symmetric": ({"symmetric": 1}, "true or false"),
    "unknown": ({"zeros": 1}, "unexpected keyword"),
}


@pytest.mark.parametrize(("changes", "message"), LAYERS.values(), ids=LAYERS)
def test_layers_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    layers = example().to_json()["layers"]
    write(tmp_path, {"layers": layers | {"fc": layers["fc"] | changes}})
    with pytest.raises(PackageError, match=rf"layer 'fc'.*{message}"):
        read_manifest(tmp_path)


def test_edits_are_noticed(tmp_path: Path) -> None:
    write(tmp_path, {"metadata": {"anything": 2}}, signed=False)
    with pytest.raises(PackageError, match="checksum differs"):
        read_manifest(tmp_path)


def test_not_a_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"no cmibq package: it has no manifest\.json"):
        read_manifest(tmp_path)
    with pytest.raises(PackageError, match="no cmibq package"):
        read_manifest(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text('["format"]')
    with pytest.raises(PackageError, match="no manifest"):
        read_manifest(tmp_path)


def test_truncation_and_bit_flips(tmp_path: Path) -> None:
    write(tmp_path, {})
    path = tmp_path / "manifest.json"
    content = path.read_bytes()
    for size in range(0, len(content) - 1, 7):
        path.write_bytes(content[:size])
        with pytest.raises(PackageError, match=r"manifest\.json"):
            read_manifest(tmp_path)
    for bit in range(0, 8 * len(content), 5):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = read_manifest(tmp_path)
        except PackageError:
            continue
        assert found == example()  # a blank became another blank
