"""Records of data files, each with the place it stands at: JSON, JSON lines, parquet."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cmibq.errors import DataError
from cmibq.fileio import read_json
from cmibq.recipe.places import local_path, placeholder

__all__ = ["SUFFIXES", "find_file", "item_lines", "read_records"]

SUFFIXES = (".json", ".jsonl", ".parquet", ".jsonl.zst", ".txt")
"""What data files end in; ``.txt`` has a text per line."""
_LIMIT = 1 << 33

Record = tuple[str, Any]


def _suffix(file: Path) -> str:
    return next((s for s in SUFFIXES if file.name.endswith(s)), "")


def _in_folder(folder: Path, name: str) -> Path:
    """Return the data file of a folder: the only one, or the only one of validation data."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and _suffix(f) not in ("", ".txt")]
    files = [f for f in files if f.name not in ("dataset_infos.json", "dataset_info.json")]
    chosen = [f for f in files if f.name.startswith("val")] if len(files) > 1 else files
    if len(chosen) != 1:
        some = ", ".join(f.name for f in files[:4]) or "none"
        raise DataError(
            f"data_path {name!r} is a folder with {len(files)} data files ({some}); name one file"
        )
    return chosen[0]


def find_file(path: str | os.PathLike[str], name: str = "data_path") -> Path:
    """Return the data file that a path names.

    Args:
        path: a file, a folder with one data file (or one whose name starts with ``val``), or
            ``owner/name`` of a data set in the Hugging Face cache.
        name: what the path is called, for messages.

    Raises:
        DataError: there is no such file, or it is of another kind.
    """
    text = str(path)
    if not text:
        raise DataError(f"{name} is empty; name a file that ends in {', '.join(SUFFIXES)}")
    if placeholder(text):
        raise DataError(f"{name} is {text!r}, which stands for your own file; give --{name} FILE")
    found = local_path(text, "dataset")
    file = _in_folder(found, text) if found.is_dir() else found
    if not file.is_file():
        raise DataError(
            f"{name} {text!r} is not a file, nor in the Hugging Face cache of this machine; check"
            " the path (nothing is downloaded)"
        )
    if not _suffix(file):
        raise DataError(f"{name} {text!r} ends in {file.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    return file


def _lines(file: IO[bytes], path: Path) -> Iterator[Record]:
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not valid JSON ({error})") from error


def _json_lines(path: Path) -> Iterator[Record]:
    with open(path, "rb") as file:
        yield from _lines(file, path)


def _zst_lines(path: Path) -> Iterator[Record]:
    import pyarrow

    try:
        with pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd") as stream:
            yield from _lines(io.BufferedReader(stream), path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be decompressed ({error})") from error


def _json_list(path: Path) -> Iterator[Record]:
    content = read_json(path, limit=_LIMIT)
    if not isinstance(content, list):
        raise DataError(f"{path}: a {type(content).__name__} at the top; write a list of items")
    for number, item in enumerate(content):
        yield f"{path}, item {number}", item


def item_lines(path: Path) -> list[int]:
    r"""Return the line on which each item of a JSON list begins.

    Args:
        path: a file that `read_records` reads.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.json"
        >>> _ = file.write_text('[\n {"id": 1},\n\n {"id": [2, 3]}]')
        >>> item_lines(file)
        [2, 4]
    """
    text, decoder = path.read_text(encoding="utf-8-sig"), json.JSONDecoder()
    at, line, seen, lines = text.index("[") + 1, 1, 0, list[int]()
    while True:
        while text[at] in " \t\r\n,":
            at += 1
        if text[at] == "]":
            return lines
        line += text.count("\n", seen, at)
        seen = at
        lines.append(line)
        at = decoder.raw_decode(text, at)[1]


def _rows(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:  # OSError: a damaged page
        raise DataError(f"{path} is no parquet file, or is damaged ({error})") from error


def _texts(path: Path) -> Iterator[Record]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error})") from error
    for number, line in enumerate(lines, 1):
        yield f"{path}, line {number}", {"text": line}


_READERS = {
    ".json": _json_list,
    ".jsonl": _json_lines,
    ".parquet": _rows,
    ".jsonl.zst": _zst_lines,
    ".txt": _texts,
}


def read_records(path: str | os.PathLike[str], name: str = "data_path") -> list[Record]:
    """Read the records of a data file.

    Args:
        path: see `find_file`. ``.json`` holds a list, ``.jsonl`` one record per line (blank lines
            are skipped), ``.parquet`` one per row, ``.txt`` one text per line.
        name: what the path is called, for messages.

    Returns:
        Pairs of where a record stands ("items.jsonl, line 7") and the record.

    Raises:
        DataError: the file is missing, empty or of another kind, or a line is not valid JSON.
        ImportError: parquet or zstd is to be read and pyarrow is not installed.
    """
    file = find_file(path, name)
    records = list(_READERS[_suffix(file)](file))
    if not records:
        raise DataError(f"{file} has no items")
    return records
