"""Texts of a file, read when they are asked for: calibration texts are few of very many."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from cmibq.data.base import CalibSample
from cmibq.data.records import find_file, read_records
from cmibq.data.shapes import image_cache
from cmibq.errors import DataError
from cmibq.fileio import atomic_write

__all__ = ["Texts", "read_texts", "shuffled"]

_PIECE = 1 << 24
_logger = logging.getLogger(__name__)


def _text(where: str, item: Any) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str):
        raise DataError(f"{where}: no text; write a string or an object with the key 'text'")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: has half a character (a lone surrogate)") from error
    return text


def _parsed(where: str, line: bytes, plain: bool) -> str:
    try:
        return _text(where, line.decode().rstrip("\r\n") if plain else json.loads(line))
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text ({error})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: not valid JSON ({error})") from error


class _Line(Mapping[str, Any]):
    """The text of a line, read when somebody asks for it."""

    def __init__(self, texts: Texts, where: str, start: int) -> None:
        self._texts, self._where, self._start = texts, where, start

    def __getitem__(self, key: str) -> Any:
        if key != "text":
            raise KeyError(key)
        with open(self._texts.path, "rb") as file:
            file.seek(self._start)
            return _parsed(self._where, file.readline(), self._texts.plain)

    def __iter__(self) -> Iterator[str]:
        return iter(("text",))

    def __len__(self) -> int:
        return 1


class Texts(Sequence[CalibSample]):
    """The lines of a file as samples; only where they begin is kept in memory.

    Args:
        path: file with a JSON value (or, if `plain`, a text) per line.
        shown: what the file is called in messages.
        plain: whether lines are texts.
        places: int64 [n, 2], number and start of each line, in the order of the samples.
    """

    def __init__(self, path: Path, shown: Path, plain: bool, places: NDArray[np.int64]) -> None:
        self.path, self.shown, self.plain, self.places = path, shown, plain, places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[CalibSample]:
        for number, start in self.places.tolist():
            yield self._one(number, start)

    def _one(self, number: int, start: int) -> CalibSample:
        where = f"{self.shown}, line {number}"
        return CalibSample((), (), where, _Line(self, where, start), where)

    @overload
    def __getitem__(self, at: int) -> CalibSample: ...
    @overload
    def __getitem__(self, at: slice) -> list[CalibSample]: ...
    def __getitem__(self, at: int | slice) -> CalibSample | list[CalibSample]:
        if isinstance(at, slice):
            return [self._one(*place) for place in self.places[at].tolist()]
        number, start = self.places[at].tolist()
        return self._one(number, start)

    def ordered(self, order: NDArray[np.int64]) -> Texts:
        """Return the same texts in another order."""
        return Texts(self.path, self.shown, self.plain, self.places[order])


def _unpacked(path: Path) -> Path:
    """Return a decompressed copy in the cache, written if it is not there."""
    import pyarrow

    stat = path.stat()
    name = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    out = image_cache().with_name("texts") / f"{hashlib.sha256(name.encode()).hexdigest()}.jsonl"
    if out.is_file():
        return out
    _logger.info("unpacking %s to %s", path, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd") as stream,
            atomic_write(out) as file,
        ):
            while piece := stream.read(_PIECE):
                file.write(piece)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be decompressed ({error})") from error
    except OSError as error:
        if error.errno is not None:  # the disk, not the content
            raise
        raise DataError(f"{path} cannot be decompressed ({error})") from error
    return out


def _lines(file: Path) -> Texts:
    """Check every line of a file and note where it begins."""
    path = _unpacked(file) if file.name.endswith(".zst") else file
    plain, places, start = file.suffix == ".txt", list[tuple[int, int]](), 0
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if plain or line.strip():
                _parsed(f"{file}, line {number}", line, plain)
                places.append((number, start))
            start += len(line)
    if not places:
        raise DataError(f"{file} has no items")
    return Texts(path, file, plain, np.array(places, np.int64))


def read_texts(path: str | os.PathLike[str], name: str = "data_path") -> Sequence[CalibSample]:
    """Read texts: strings or ``{"text": ...}``, or the lines of a ``.txt`` file.

    Lines are checked now and read again when they are asked for, so that a file may be larger than
    memory; ``.json`` and ``.parquet`` are read as a whole.

    Args:
        path: see `cmibq.data.records.find_file`.
        name: what the path is called, for messages.

    Raises:
        DataError: naming the file and the line, item or row.
    """
    file = find_file(path, name)
    if file.suffix not in (".json", ".parquet"):
        return _lines(file)
    return [
        CalibSample((), (), where, {"text": _text(where, item)}, where)
        for where, item in read_records(file, name)
    ]


def shuffled(samples: Sequence[CalibSample], seed: int) -> Sequence[CalibSample]:
    """Return texts in the order in which Hugging Face's ``shuffle(seed=...)`` puts them."""
    order = np.random.default_rng(seed).permutation(len(samples))
    if isinstance(samples, Texts):
        return samples.ordered(order)
    return [samples[i] for i in order]
