"""The manifest of a package: which files, with which hashes, and how each layer is quantised."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from cmibq.errors import ConfigError, DataError, PackageError, nearest
from cmibq.fileio import read_json, sha256_bytes
from cmibq.strips import STRIP, Widths, check_bits, packed_bytes, single

__all__ = ["FORMAT", "MANIFEST", "VERSION", "FileInfo", "LayerSpec", "Manifest", "read_manifest"]

FORMAT: Final = "cmibq-package"
VERSION: Final = 3
"""Newest version that is read; each package is written as the lowest one that holds it."""
MANIFEST: Final = "manifest.json"
_SUM: Final = "checksum"
_OWN: Final = "cmibq"
_ALLOWED: Final = (_OWN, "compressed-tensors")


@dataclass(frozen=True)
class FileInfo:
    """Content of one file: SHA-256 in hex digits, and size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class LayerSpec:
    """How one linear layer is stored.

    Args:
        shape: (outputs, inputs).
        bits: bits per weight, 1..8; mixed bits: one width, 2..8, for every 16 outputs. In JSON a
            number, or text with one digit per 16 outputs.
        group_size: inputs per scale; <= 0 is one scale per row.
        symmetric: no zero points are stored.
        act_bits: 8 = activations are quantised per token, 16 = they are not.
        bias: whether there is a bias.

    Raises:
        PackageError: a field is out of range.

    Example:
        >>> layer = LayerSpec((8, 64), bits=4, group_size=32, symmetric=False)
        >>> layer.nbytes * 8 / layer.weights
        4.625
    """

    shape: tuple[int, int]
    bits: Widths
    group_size: int
    symmetric: bool
    act_bits: int = 16
    bias: bool = False

    def __post_init__(self) -> None:
        sizes = self.shape
        sane = len(sizes) == 2 and all(type(n) is int and 0 < n < 1 << 40 for n in sizes)
        if not sane or sizes[0] * sizes[1] >= 1 << 48:
            raise PackageError(f"shape is {sizes}; allowed are two positive numbers")
        self._check_bits()
        if type(self.group_size) is not int or (self.group_size > 0 and sizes[1] % self.group_size):
            raise PackageError(
                f"group_size is {self.group_size!r}; it must divide {sizes[1]} inputs"
            )
        if self.act_bits not in (8, 16):
            raise PackageError(f"act_bits is {self.act_bits!r}; allowed are 8, 16")
        if type(self.symmetric) is not bool or type(self.bias) is not bool:
            raise PackageError("symmetric and bias must be true or false")

    def _check_bits(self) -> None:
        if isinstance(self.bits, tuple):
            try:
                check_bits(self.bits, self.shape[0])
            except ConfigError as error:
                raise PackageError(str(error)) from error
            if single(self.bits) is not None:
                raise PackageError(f"bits has equal widths; write them as {self.bits[0]}")
        elif type(self.bits) is not int or not 1 <= self.bits <= 8:
            raise PackageError(f"bits is {self.bits!r}; allowed are 1..8")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values.

        Example:
            >>> LayerSpec((20, 64), (2, 4), 32, True).to_json()["bits"]
            '24'
        """
        value = dataclasses.asdict(self) | {"shape": list(self.shape)}
        if isinstance(self.bits, tuple):
            value["bits"] = "".join(map(str, self.bits))
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LayerSpec:
        """Return the layer of such values.

        Raises:
            PackageError: a field is missing, unknown or out of range.
        """
        try:
            bits = value["bits"]
            if isinstance(bits, str):
                if not bits.isascii() or not bits.isdigit():
                    raise PackageError(
                        f"bits is {bits!r}; allowed is one digit per {STRIP} outputs"
                    )
                bits = tuple(map(int, bits))
            return cls(**{**value, "shape": tuple(value["shape"]), "bits": bits})
        except (TypeError, KeyError) as error:
            raise PackageError(str(error)) from error

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def groups(self) -> int:
        """Number of scales per row."""
        return self.shape[1] // self.group_size if self.group_size > 0 else 1

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, zero points and mixed widths, without the bias."""
        outs, cols = self.shape
        zeros = 0 if self.symmetric else packed_bytes(self.bits, outs, self.groups)
        widths = 0 if isinstance(self.bits, int) else len(self.bits)
        return packed_bytes(self.bits, outs, cols) + 2 * self.groups * outs + zeros + widths


@dataclass(frozen=True)
class Manifest:
    """What a package holds.

    Args:
        cmibq: version of the library that wrote it.
        files: every file but the manifest itself.
        layers: quantised layers by module name.
        tied: names of tensors, and of quantised layers, that are the same as another one, which is
            stored.
        recipe: how it was made.
        metadata: open extra fields.
        environment: versions and settings it was made with.
        activations: ranges of activations (empty so far).
        constants: integer constants (empty so far).
        layout: how the layers are written, ``"cmibq"`` or ``"compressed-tensors"``.
    """

    cmibq: str
    files: Mapping[str, FileInfo]
    layers: Mapping[str, LayerSpec]
    tied: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    activations: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    layout: str = _OWN

    @property
    def packed_bytes(self) -> int:
        """Bytes of all quantised layers: codes, scales and zero points."""
        return sum(layer.nbytes for layer in self.layers.values())

    @property
    def bits_per_weight(self) -> float:
        """Mean bits per weight of the quantised layers, scales and zero points included."""
        weights = sum(layer.weights for layer in self.layers.values())
        return 8 * self.packed_bytes / weights if weights else math.nan

    @property
    def fewest_bits(self) -> int:
        """The smallest width of the codes."""
        widths = (layer.bits for layer in self.layers.values())
        return min(b if isinstance(b, int) else min(b) for b in widths)

    @property
    def version(self) -> int:
        """The lowest version of the format that holds this."""
        if self.layout != _OWN:
            return 3
        mixed = any(not isinstance(layer.bits, int) for layer in self.layers.values())
        return 2 if mixed or any(name in self.layers for name in self.tied.values()) else 1

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON values, with a checksum of them."""
        value: dict[str, Any] = {"format": FORMAT, "version": self.version}
        value |= dataclasses.asdict(self)
        if self.layout == _OWN:
            del value["layout"]  # older versions have no other
        value["layers"] = {name: layer.to_json() for name, layer in self.layers.items()}
        value = json.loads(json.dumps(value, allow_nan=False))
        return value | {_SUM: _checksum(value)}


def _checksum(value: Mapping[str, Any]) -> str:
    rest = {key: content for key, content in value.items() if key != _SUM}
    return sha256_bytes(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check the manifest of a package.

    Raises:
        PackageError: there is none, it is damaged, of a newer version, or says what cannot be.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise PackageError(f"{folder} is no cmibq package: it has no {MANIFEST}; check the path")
    try:
        value = read_json(path)
    except DataError as error:
        raise PackageError(f"{error}; copy or make the package again") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise PackageError(f"{path} is no manifest of a cmibq package; check the path")
    version = value.get("version")
    if type(version) is not int or version < 1:
        raise PackageError(f"{path}: version is {version!r}; the file is damaged")
    if version > VERSION:
        raise PackageError(
            f"{path}: version {version} is newer than {VERSION}, which this cmibq reads; update it"
        )
    if value.get(_SUM) != _checksum(value):
        raise PackageError(f"{path}: the checksum differs; the file is damaged or was edited")
    manifest = _parse(value, path)
    if manifest.version > version:
        raise PackageError(
            f"{path}: version is {version}, but what it holds came with {manifest.version}; make "
            "the package again"
        )
    return manifest


def _parse(value: dict[str, Any], path: Path) -> Manifest:
    fields = {f.name: f for f in dataclasses.fields(Manifest)}
    unknown = value.keys() - fields.keys() - {"format", "version", _SUM}
    if unknown:
        name = min(unknown)
        raise PackageError(f"{path}: unknown key {name!r}; {nearest(name, fields)}")
    for name in fields:
        kind = str if name in ("cmibq", "layout") else dict
        if name == "layout" and value.setdefault(name, _OWN) not in _ALLOWED:
            allowed = ", ".join(_ALLOWED)
            raise PackageError(f"{path}: layout is {value[name]!r}; known are {allowed}")
        if not isinstance(value.get(name), kind):
            raise PackageError(f"{path}: {name} is missing or of the wrong kind")
    kept = {name: value[name] for name in fields}
    kept["files"] = {n: _file(n, info, path) for n, info in value["files"].items()}
    kept["layers"] = {n: _layer(n, spec, path) for n, spec in value["layers"].items()}
    return Manifest(**kept)


def _file(name: str, info: Any, path: Path) -> FileInfo:
    plain = PurePosixPath(name)
    inside = not plain.is_absolute() and ".." not in plain.parts and "\\" not in name
    if not inside or str(plain) != name or name in (".", MANIFEST):
        raise PackageError(f"{path}: file name {name!r} does not lie in the package")
    try:
        found = FileInfo(**info)
    except TypeError as error:
        raise PackageError(f"{path}: entry of file {name!r}: {error}") from error
    if not isinstance(found.sha256, str) or type(found.bytes) is not int:
        raise PackageError(f"{path}: entry of file {name!r} is of the wrong kind")
    return found


def _layer(name: str, spec: Any, path: Path) -> LayerSpec:
    try:
        return LayerSpec.from_json(spec)
    except PackageError as error:
        raise PackageError(f"{path}: layer {name!r}: {error}") from error
