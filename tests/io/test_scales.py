from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from cmibq.errors import ConfigError, PackageError, StorageError
from cmibq.io import ScaleEntry, load_scales, save_scales
from tests.test_fileio import file_size_limit

GOLDEN = Path(__file__).parents[1] / "golden" / "mbq_scales_tiny.pt"
SUFFIXES = [".pt", ".safetensors"]


def entries() -> list[ScaleEntry]:
    torch.manual_seed(0)
    return [
        ScaleEntry("model.layers.0.input_layernorm", ("a.q_proj", "a.k_proj"), torch.rand(8) + 0.1),
        ScaleEntry("model.layers.0.up_proj", ("a.down_proj",), (torch.rand(4) + 1).half()),
        ScaleEntry("model.layers.1.up_proj", ("b.down_proj",), torch.full((4,), 2.0).bfloat16()),
    ]


def same(a: list[ScaleEntry], b: list[ScaleEntry]) -> bool:
    return len(a) == len(b) and all(
        x[:2] == y[:2] and x[2].dtype == y[2].dtype and torch.equal(x[2], y[2])
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"s{suffix}"
    save_scales(path, entries(), provenance={"fingerprint": "abc", "method": "mbq"})
    found = load_scales(path)
    assert same(list(found.entries), entries())
    assert found.provenance == {"fingerprint": "abc", "method": "mbq"}


def test_reads_what_the_published_code_wrote() -> None:
    found = load_scales(GOLDEN)
    assert found.entries
    assert found.provenance == {}
    prev, linears, scales = found.entries[0]
    assert "norm" in prev
    assert all(name.endswith("_proj") for name in linears)
    assert scales.ndim == 1


def test_the_published_code_reads_what_is_written(tmp_path: Path) -> None:
    save_scales(tmp_path / "s.pt", entries())
    content = torch.load(tmp_path / "s.pt", weights_only=True)
    assert same([ScaleEntry(*row) for row in content["scale"]], entries())
    assert all(type(row) is tuple and type(row[1]) is tuple for row in content["scale"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_stale_scales_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"s{suffix}"
    save_scales(path, entries(), provenance={"fingerprint": "abc"})
    assert load_scales(path, fingerprint="abc").entries
    with pytest.raises(ConfigError, match=r"stale.*overwrite"):
        load_scales(path, fingerprint="xyz")
    save_scales(path, entries())
    with pytest.raises(ConfigError, match="nothing it records"):
        load_scales(path, fingerprint="xyz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"s{suffix}"
    save_scales(path, entries(), provenance={"fingerprint": "abc"})
    content = path.read_bytes()
    for size in range(0, len(content), 61):
        path.write_bytes(content[:size])
        with pytest.raises(PackageError, match=r"s\.(pt|safetensors)"):
            load_scales(path)
    for bit in range(0, 8 * len(content), 67):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = load_scales(path)
        except (PackageError, ConfigError):
            continue
        assert same(list(found.entries), entries())


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/cmibq-was-here"),))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    marker = Path("/tmp/cmibq-was-here")
    marker.unlink(missing_ok=True)
    for name, content in {"a.pt": pickle.dumps(Evil()), "b.pt": pickle.dumps([1])}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PackageError):
            load_scales(tmp_path / name)
    torch.save({"scale": [("a", ("b",), Evil())]}, tmp_path / "c.pt")
    with pytest.raises(PackageError):
        load_scales(tmp_path / "c.pt")
    assert not marker.exists()


ODD = {
    "no key": {"scales": []},
    "a list": [1, 2],
    "two parts": {"scale": [("a", ("b",))]},
    "no tensor": {"scale": [("a", ("b",), 1.0)]},
    "no names": {"scale": [("a", (1,), torch.ones(2))]},
    "no layers": {"scale": [("a", (), torch.ones(2))]},
    "matrix": {"scale": [("a", ("b",), torch.ones(2, 2))]},
    "nan": {"scale": [("a", ("b",), torch.tensor([1.0, float("nan")]))]},
    "zero": {"scale": [("a", ("b",), torch.tensor([1.0, 0.0]))]},
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_odd_content(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "s.pt")
    with pytest.raises(PackageError):
        load_scales(tmp_path / "s.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bad_scales_are_not_saved(tmp_path: Path, suffix: str) -> None:
    bad = [ScaleEntry("a", ("b",), torch.tensor([1.0, float("inf")]))]
    with pytest.raises(PackageError, match=r"entry 0 \(a -> b\).*search again"):
        save_scales(tmp_path / f"s{suffix}", bad)
    assert not list(tmp_path.iterdir())


def test_names_of_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in one of \.pt"):
        save_scales(tmp_path / "s.npz", entries())
    with pytest.raises(PackageError, match=r"does not exist.*--run_process"):
        load_scales(tmp_path / "s.pt")


def test_newer_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmibq.io.scales._VERSION", 2)
    save_scales(tmp_path / "s.safetensors", entries())
    monkeypatch.undo()
    with pytest.raises(PackageError, match="version 2 is newer than 1"):
        load_scales(tmp_path / "s.safetensors")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk(tmp_path: Path, suffix: str) -> None:
    big = [ScaleEntry("a", ("b",), torch.ones(100_000))]
    with file_size_limit(5000), pytest.raises(StorageError, match="free space"):
        save_scales(tmp_path / f"s{suffix}", big)
    assert not list(tmp_path.iterdir())
