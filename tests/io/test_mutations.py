"""Packages with random damage: the same answer or an error with a name, never anything else."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from cmibq import io
from cmibq.errors import PackageError
from cmibq.io.manifest import _checksum
from tests.io.test_package import save, skeleton

IDS = torch.arange(8).reshape(2, 4)
VALUES = b"0 1 -1 99999999999999999999 1.5 3 null true [] {}".split()
SPLICES = [b"\xff" * 4, bytes(4), b"\x00\x7c\x00\x7e", b"9999", b"null"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> io.Package:
    return save(tmp_path_factory.mktemp("io"))


def damage(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip, insert, take out, or put another number in place of one of the header."""
    kind, at = rng.randrange(6), rng.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
    if kind == 3:
        return data[:at] + data[at + rng.randrange(1, 9) :]
    if kind == 4:
        return data[:at] + rng.choice(SPLICES) + data[at + 4 :]
    numbers = list(re.finditer(rb"\d+", data[:4000]))
    found = rng.choice(numbers) if numbers else re.match(b"", data)
    assert found
    return data[: found.start()] + rng.choice(VALUES) + data[found.end() :]


def sign(folder: Path, *, hashes: bool) -> None:
    """Make the manifest agree with the damage, as an attacker would."""
    value = json.loads((folder / "manifest.json").read_bytes())
    for name in value["files"] if hashes else []:
        data = (folder / name).read_bytes()
        value["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    value["checksum"] = _checksum(value)
    (folder / "manifest.json").write_text(json.dumps(value))


@pytest.mark.parametrize("seed", range(6))
def test_damage_is_named_or_harmless(package: io.Package, tmp_path: Path, seed: int) -> None:
    rng, same, named = random.Random(seed), 0, 0
    files = [f.relative_to(package.path) for f in package.path.rglob("*") if f.is_file()]
    files += [Path("manifest.json"), Path("cmibq.safetensors"), Path("probe.safetensors")] * 3
    want = package.fill_(skeleton())(IDS)
    for turn in range(25):
        folder = Path(shutil.copytree(package.path, tmp_path / str(turn)))
        name, signed = rng.choice(files), rng.random() < 0.7
        (folder / name).write_bytes(damage((folder / name).read_bytes(), rng))
        try:
            if signed:
                sign(folder, hashes=name.name != "manifest.json")
        except (ValueError, KeyError, TypeError, AttributeError):
            signed = False  # no manifest any more
        try:
            opened = io.load(folder, verify=not signed)
            model = opened.fill_(skeleton())
            got = model(IDS)
            io.check_probe(model, opened)
        except PackageError as error:
            named += str(tmp_path) in str(error)
            continue
        same += torch.equal(got, want)
        assert got.shape == want.shape
        assert signed or torch.equal(got, want)
    assert same
    assert named
