"""Files of smoothing scales: MBQ's ``.pt`` layout, and safetensors with the same content."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from cmibq.errors import ConfigError, PackageError
from cmibq.fileio import atomic_write, sha256_bytes, write_bytes
from cmibq.io.tensors import read_tensors, write_tensors

__all__ = ["ScaleEntry", "Scales", "check_made_for", "load_scales", "save_scales"]

_FORMAT: Final = "cmibq-scales"
_VERSION: Final = 1
_KEY: Final = "cmibq"
_PLACE: Final = re.compile(r"^.*?(layers\.\d+\..+)$")
_SUFFIXES: Final = (".pt", ".pth", ".safetensors")


class ScaleEntry(NamedTuple):
    """Scales of one group: columns of `linears` are multiplied, `prev` is divided by them."""

    prev: str
    linears: tuple[str, ...]
    scales: Tensor

    @property
    def place(self) -> tuple[str, ...]:
        """Names from the number of the block on; how they start differs by library."""
        return tuple(_PLACE.sub(r"\1", name) for name in (self.prev, *self.linears))


@dataclass(frozen=True)
class Scales:
    """Content of a file of scales.

    Args:
        entries: in the order in which they are applied.
        provenance: what they were made from; empty for files of other programs.
    """

    entries: Sequence[ScaleEntry]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def _suffix(path: Path) -> str:
    if path.suffix not in _SUFFIXES:
        allowed = ", ".join(_SUFFIXES)
        raise ConfigError(f"{path}: a file of scales ends in one of {allowed}; rename it")
    return path.suffix


def _checked(entries: Sequence[ScaleEntry], where: str) -> list[ScaleEntry]:
    for number, entry in enumerate(entries):
        place = f"{where}: entry {number} ({entry.prev} -> {', '.join(entry.linears)})"
        if not entry.linears or entry.scales.ndim != 1 or not len(entry.scales):
            raise PackageError(f"{place}: needs layers and a vector of scales")
        if not bool((torch.isfinite(entry.scales) & (entry.scales > 0)).all()):
            raise PackageError(f"{place}: a scale is not finite and > 0; search again")
    return list(entries)


def _as_mbq(name: str) -> str:
    """Return a module's name as in the models that MBQ runs on.

    Since version 5 transformers has the language model of Qwen2-VL and LLaVA one level deeper.
    """
    return name.replace("model.language_model.", "model.", 1)


def save_scales(
    path: str | Path,
    entries: Sequence[ScaleEntry],
    *,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write scales atomically; the suffix chooses the format.

    ``.pt`` is what the published MBQ code reads: ``{"scale": [(prev, (linear, ...), s), ...]}``,
    with one more key for the provenance and the names that modules have there (readers here go by
    names from ``layers.N`` on). ``.safetensors`` holds the same without pickle.

    Args:
        path: ``*.pt`` or ``*.safetensors``.
        entries: in the order in which they are applied.
        provenance: JSON values that say what the scales belong to; ``fingerprint`` is compared
            when they are read.

    Raises:
        ConfigError: unknown suffix.
        PackageError: a scale is not finite and > 0.
        StorageError: disk full or not permitted.
    """
    target = Path(path)
    suffix = _suffix(target)
    own = str if suffix == ".safetensors" else _as_mbq
    rows = [
        ScaleEntry(own(p), tuple(map(own, n)), s.detach().cpu().contiguous()) for p, n, s in entries
    ]
    _checked(rows, str(target))
    head: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "sha256": _content(rows)}
    head["provenance"] = dict(provenance or {})
    if suffix != ".safetensors":
        content = {"scale": [tuple(row) for row in rows], _KEY: json.dumps(head)}
        buffer = io.BytesIO()  # torch.save hides what went wrong with a file behind its own error
        torch.save(content, buffer)
        write_bytes(target, buffer.getvalue())
        return
    head["entries"] = [{"prev": row.prev, "linears": list(row.linears)} for row in rows]
    tensors = {f"scale.{number:05d}": row.scales.clone() for number, row in enumerate(rows)}
    with atomic_write(target) as file:
        write_tensors(file, tensors, {_KEY: json.dumps(head)})


def load_scales(path: str | Path, *, fingerprint: str | None = None) -> Scales:
    """Read scales written here or by the published MBQ code; nothing is unpickled freely.

    Args:
        path: ``*.pt`` (only plain containers and tensors are accepted) or ``*.safetensors``.
        fingerprint: what the scales must have been made from; None accepts any.

    Raises:
        ConfigError: the file records another fingerprint, or none although one is asked for.
        PackageError: the file is missing, damaged, newer or not a file of scales.
    """
    source = Path(path)
    if not source.is_file():
        raise PackageError(f"{source} does not exist; make it with cmibq quantize --run_process")
    scales = _from_tensors(source) if _suffix(source) == ".safetensors" else _from_pt(source)
    found = scales.provenance.get("fingerprint")
    if fingerprint is not None and found != fingerprint:
        made = f"{str(found)[:12]}..." if found else "nothing it records"
        raise ConfigError(
            f"{source} was made from {made}, this run is {fingerprint[:12]}...; the scales are "
            "stale: choose another scale_path, or set run_process and overwrite"
        )
    return scales


def check_made_for(path: str | Path, wanted: Mapping[str, Any], weights: str = "") -> None:
    """Refuse scales that were made for other settings; files of other programs do not say.

    Args:
        path: file of scales.
        wanted: name of a setting in the provenance -> its value now.
        weights: hash of the weights they are to be applied to; empty = not compared.

    Raises:
        ConfigError: a setting differs, or the model; names it.
        PackageError: the file is missing, damaged, newer or not a file of scales.
    """
    made = load_scales(path).provenance
    for name, value in wanted.items():
        if name in made and made[name] != value:
            raise ConfigError(
                f"{path} was made with {name} {made[name]!r}, this run has {value!r}; make both"
                " equal, or search anew with cmibq quantize --run_process"
            )
    if weights and made.get("weights", weights) != weights:
        raise ConfigError(
            f"{path} was made for {made.get('model_args')!r} with other weights than the model of"
            " this run; name that model, or search anew with cmibq quantize --run_process"
        )


def _content(entries: Sequence[ScaleEntry]) -> str:
    """Hash names and numbers."""
    names = json.dumps([[e.prev, *e.linears, str(e.scales.dtype)] for e in entries])
    data = [e.scales.contiguous().view(torch.uint8).numpy().tobytes() for e in entries]
    return sha256_bytes(names.encode() + b"".join(data))


def _head(text: Any, where: Path) -> dict[str, Any]:
    try:
        head = json.loads(text)
        version = head["version"]
        if head["format"] != _FORMAT or not isinstance(head["provenance"], dict):
            raise KeyError("format")
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise PackageError(f"{where} is not a file of scales, or is damaged") from error
    if type(version) is not int or version > _VERSION:
        raise PackageError(f"{where}: version {version} is newer than {_VERSION}; update cmibq")
    return dict(head)


def _from_tensors(path: Path) -> Scales:
    tensors, metadata = read_tensors(path)
    head = _head(metadata.get(_KEY), path)
    try:
        entries = [
            ScaleEntry(str(e["prev"]), tuple(map(str, e["linears"])), tensors[f"scale.{i:05d}"])
            for i, e in enumerate(head["entries"])
        ]
    except (TypeError, KeyError) as error:
        raise PackageError(f"{path} is not a file of scales, or is damaged") from error
    return _verified(entries, head, path)


def _from_pt(path: Path) -> Scales:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        rows = [(str(p), tuple(n), s) for p, n, s in content["scale"]]
        head = _head(content[_KEY], path) if _KEY in content else {"provenance": {}}
    except PackageError:
        raise
    except Exception as error:  # damaged bytes make the restricted unpickler raise anything
        raise PackageError(
            f"{path} is not a file of scales, or is damaged ({type(error).__name__})"
        ) from error
    if not all(isinstance(s, Tensor) and all(isinstance(x, str) for x in n) for _, n, s in rows):
        raise PackageError(f"{path} is not a file of scales in MBQ's layout")
    return _verified([ScaleEntry(p, n, s) for p, n, s in rows], head, path)


def _verified(entries: list[ScaleEntry], head: Mapping[str, Any], path: Path) -> Scales:
    _checked(entries, str(path))
    if head.get("format") and head.get("sha256") != _content(entries):
        raise PackageError(f"{path}: the checksum differs; the file is damaged, search again")
    return Scales(entries, head["provenance"])
