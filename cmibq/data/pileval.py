"""Text calibration data from a local file, in rows of 512 tokens as AWQ takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmibq.data.base import CALIBRATIONS, Calibration, CalibSample, read_json_items
from cmibq.data.prompts import Encoded
from cmibq.errors import DataError
from cmibq.recipe import QuantRecipe

__all__ = ["ROW", "read_texts", "rows_of"]

ROW = 512


def _text(where: str, item: Any) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str):
        raise DataError(f"{where}: no text; write a string or an object with the key 'text'")
    return text


def read_texts(path: str) -> list[CalibSample]:
    """Read texts: ``.json`` or ``.jsonl`` of strings or ``{"text": ...}``, ``.txt`` line by line.

    Raises:
        DataError: naming the file and the line or item.
    """
    file = Path(path).expanduser()
    if file.suffix == ".txt" and file.is_file():
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 text ({error})") from error
        items: list[tuple[str, Any]] = [(f"{file}, line {i}", t) for i, t in enumerate(lines, 1)]
    else:
        items = read_json_items(path)
    return [
        CalibSample((), (), where, {"text": _text(where, item)}, where) for where, item in items
    ]


def rows_of(
    samples: Sequence[CalibSample], tokenizer: Any, count: int, *, tail: bool
) -> list[Encoded]:
    """Join the first `count` texts of 1 to 512 tokens and cut them into rows of 512.

    Args:
        samples: texts, already shuffled.
        tokenizer: turns a text into ids.
        count: how many texts.
        tail: keep the last, shorter row (the published code drops it).

    Raises:
        DataError: no row comes out.
    """
    joined: list[int] = []
    taken = 0
    for sample in samples:
        ids = tokenizer(sample.raw["text"].strip())["input_ids"]
        if not 0 < len(ids) <= ROW:
            continue
        joined += ids
        taken += 1
        if taken == count:
            break
    end = len(joined) if tail else len(joined) // ROW * ROW
    if not end:
        raise DataError(
            f"the calibration texts give no row: {taken} texts of 1 to {ROW} tokens,"
            f" {len(joined)} tokens together; add texts or raise n_samples"
        )
    made = []
    for start in range(0, end, ROW):
        row = np.asarray(joined[start : min(start + ROW, end)], np.int64)
        one = CalibSample((), (), f"row {start // ROW}", {}, f"row {start // ROW} of the texts")
        made.append(Encoded(row, np.ones(len(row), np.bool_), np.zeros(len(row), np.bool_), one))
    return made


def _read(recipe: QuantRecipe) -> list[CalibSample]:
    samples = read_texts(recipe.data_path)
    order = np.random.default_rng(recipe.seed).permutation(len(samples))
    return [samples[i] for i in order]


def _encode(samples: Sequence[CalibSample], processor: Any, recipe: QuantRecipe) -> list[Encoded]:
    tokenizer = getattr(processor, "tokenizer", processor)
    tail = recipe.variant != "reference"
    return rows_of(samples, tokenizer, recipe.n_samples, tail=tail)


CALIBRATIONS.register("pileval")(Calibration(_read, _encode))
