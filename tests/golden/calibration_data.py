"""Data for calibration.json: items with pictures, long texts, texts of all lengths."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from cmibq.data import Encoded, encode, read_items
from tests.fixtures import WORDS, make_processor, write_items

COUNTS = {"plain": 31, "few_shot_format": 31, "interleave_format": 21, "pileval": 20}
"""What is made -> n_samples; there are 24 items, so that some recur."""


def _texts(path: Path, rng: np.random.Generator, count: int, least: int, most: int) -> Path:
    rows = [" ".join(rng.choice(WORDS, int(rng.integers(least, most)))) for _ in range(count)]
    path.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    return path


def write_all(folder: Path) -> tuple[Path, Path, Path]:
    """Write items, long texts and texts; return their files."""
    rng = np.random.default_rng(5)
    return (
        write_items(folder, 24),
        _texts(folder / "long.jsonl", rng, 60, 300, 900),
        _texts(folder / "texts.jsonl", rng, 80, 0, 700),
    )


def rows_by_id(items: Path) -> dict[str, Encoded]:
    """Return the token rows of all items."""
    return {e.sample.id: e for e in encode(read_items(items), make_processor())}


def digest(rows: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Return how many rows there are, and a hash of their ids and labels."""
    return {"rows": len(rows), "sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}
