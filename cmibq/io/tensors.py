"""Reading and writing safetensors files: hashed while written, checked before they are read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import torch
from torch import Tensor

from cmibq.errors import ModelError, PackageError

__all__ = ["file_size", "read_header", "read_tensors", "write_tensors"]

_NAMES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES: Final = {name: dtype for dtype, name in _NAMES.items()}
_HEADER_LIMIT: Final = 100_000_000
_CHUNK: Final = 1 << 24


class _Place(NamedTuple):
    """Where a tensor lies behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def _flat_bytes(tensor: Tensor) -> memoryview:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return data.numpy().data


def _pieces(head: bytes, tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    for data in (memoryview(head), *map(_flat_bytes, tensors)):
        for at in range(0, len(data), _CHUNK):
            yield data[at : at + _CHUNK]


Entries = Mapping[str, tuple[torch.dtype, Sequence[int]]]


def _header(entries: Entries, metadata: Mapping[str, str] | None) -> tuple[bytes, int]:
    """Return the header of a file with tensors in this order, and the bytes of their data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, (dtype, shape) in entries.items():
        start = end
        end += math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), end


def file_size(entries: Entries) -> int:
    """Return the size of the file that `write_tensors` makes of tensors of these types and shapes.

    Example:
        >>> file_size({"a": (torch.float16, (2, 3))})
        108
    """
    order = sorted(entries, key=lambda name: (-entries[name][0].itemsize, name))
    text, end = _header({name: entries[name] for name in order}, None)
    return 8 + len(text) + end


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[str, int]:
    """Write tensors in the safetensors format, one after the other, without a copy of them all.

    Wide data types come first, so that every tensor is aligned to its element size.

    Args:
        file: open for writing, at its start.
        tensors: by name; kept in their data type.
        metadata: text entries of the header.

    Returns:
        SHA-256 of what was written, and its size in bytes.

    Raises:
        ModelError: a data type that safetensors files written here do not have.

    References:
        The safetensors format, https://huggingface.co/docs/safetensors
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ModelError(f"{name}: data type {tensor.dtype} cannot be saved; convert it first")
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    text, end = _header(
        {name: (tensors[name].dtype, tensors[name].shape) for name in order}, metadata
    )
    digest = hashlib.sha256()
    for piece in _pieces(struct.pack("<Q", len(text)) + text, (tensors[n] for n in order)):
        digest.update(piece)
        file.write(piece)
    return digest.hexdigest(), 8 + len(text) + end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _parse(text: bytes, size: int) -> tuple[dict[str, _Place], dict[str, str]]:
    """Check a header against the `size` bytes of data behind it; tensors must tile them."""
    header = json.loads(text, object_pairs_hook=_unique)
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("metadata must be text")
    places = {}
    for name, entry in header.items():
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
            raise ValueError(f"{name}: shape or place is no natural number")
        if end - start != math.prod(shape) * _TYPES[dtype].itemsize:
            raise ValueError(f"{name}: {end - start} bytes for shape {shape} of {dtype}")
        places[name] = _Place(_TYPES[dtype], tuple(shape), start, end)
    at = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].end)):
        if place.start != at:
            raise ValueError(f"{name}: starts at byte {place.start}, not {at}")
        at = place.end
    if at != size:
        raise ValueError(f"tensors take {at} of {size} bytes")
    return places, metadata


def _fill(stream: BinaryIO, place: _Place) -> Tensor:
    data = torch.empty(place.end - place.start, dtype=torch.uint8)
    view, done = data.numpy().data, 0
    while done < len(view):
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]  # BinaryIO lacks it
        if not count:
            raise EOFError("the file became shorter while it was read")
        done += count
    return data.view(place.dtype).reshape(place.shape)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[BinaryIO, dict[str, _Place], dict[str, str]]]:
    """Open a file, check its header against its size, and explain what goes wrong."""
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size - 8
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size, _HEADER_LIMIT):
                raise ValueError(f"a header of {length} bytes does not fit")
            yield stream, *_parse(stream.read(length), size - length)
    except OSError as error:
        raise PackageError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except PackageError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, EOFError) as error:
        raise PackageError(
            f"{path} is truncated or damaged ({type(error).__name__}: {error}); copy it again"
        ) from error


def read_header(path: str | Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Read the shapes and the text entries of a safetensors file; no tensor is read.

    Raises:
        PackageError: the file is missing, truncated, damaged or hostile.
    """
    with _opened(path) as (_, places, metadata):
        return {name: place.shape for name, place in places.items()}, metadata


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the text entries of a safetensors file.

    Every size is checked against the file before memory is taken for it. The tensors are copies:
    the file may change or go afterwards.

    Raises:
        PackageError: the file is missing, truncated, damaged or hostile.
    """
    with _opened(path) as (stream, places, metadata):
        order = sorted(places, key=lambda name: (places[name].start, places[name].end))
        return {name: _fill(stream, places[name]) for name in order}, metadata
