"""The file of results: its schema, and how the rows of one axis are replaced in it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["MACHINE", "QUICK", "RESULTS", "merge", "problems", "read", "write"]

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
QUICK = HERE / "results-quick.json"
MACHINE = HERE / "machine.json"
KEYS = ("axis", "case", "threads", "ours", "peers", "limit", "note")

Row = Mapping[str, Any]


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the rows of a file; none where there is no file."""
    return list(json.loads(path.read_text())) if path.exists() else []


def write(path: Path, data: object) -> None:
    """Write JSON, one row a line, in one step: a reader sees the old file or the new one."""
    if isinstance(data, list):
        text = "[\n" + ",\n".join(json.dumps(row) for row in data) + "\n]\n"
    else:
        text = json.dumps(data, indent=1) + "\n"
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    os.replace(part, path)


def merge(old: Iterable[Row], new: Iterable[Row], names: Iterable[tuple[str, str]]) -> list[Row]:
    """Return the old rows with the new ones in their place, in the order of the cases.

    Args:
        old: rows so far.
        new: rows just measured; they replace rows of the same axis, case and thread count.
        names: (axis, case) of every case there is, in order; rows of no such case are dropped.

    Example:
        >>> row = {"axis": "a", "case": "x", "threads": 1, "ours": 2}
        >>> merge([row, row | {"case": "gone"}], [row | {"ours": 1}], [("a", "x")])
        [{'axis': 'a', 'case': 'x', 'threads': 1, 'ours': 1}]
    """
    rows = {(r["axis"], r["case"], r["threads"]): r for r in [*old, *new]}
    order = {name: n for n, name in enumerate(names)}
    known = [key for key in rows if key[:2] in order]
    return [rows[key] for key in sorted(known, key=lambda key: (order[key[:2]], key[2]))]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def problems(rows: object) -> list[str]:
    """Return what breaks the schema, one line each; an empty list for a good file.

    Example:
        >>> problems([{"axis": "a", "case": "x", "threads": 1, "ours": 0, "peers": {}, "limit": 1,
        ...            "note": ""}])
        ['row 0 (a, x): ours is 0, expected a number > 0']
    """
    if not isinstance(rows, list):
        return ["expected a list of rows"]
    found, seen = [], set()
    for n, row in enumerate(rows):
        if not isinstance(row, dict) or tuple(row) != KEYS:
            found.append(f"row {n}: expected the keys {', '.join(KEYS)}, in this order")
            continue
        name = f"row {n} ({row['axis']}, {row['case']}): "
        peers = row["peers"] if isinstance(row["peers"], dict) else {"peers": None}
        figures = {"ours": row["ours"], "limit": row["limit"], **peers}
        for key, value in figures.items():
            if not _number(value):
                found.append(f"{name}{key} is {value}, expected a number > 0")
        if not isinstance(row["threads"], int) or row["threads"] < 1:
            found.append(f"{name}threads is {row['threads']}, expected an integer >= 1")
        if not isinstance(row["note"], str):
            found.append(f"{name}note is no text")
        key = (row["axis"], row["case"], row["threads"])
        if key in seen:
            found.append(f"{name}a second row for {row['threads']} threads")
        seen.add(key)
    return found
