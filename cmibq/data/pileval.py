"""Text calibration data from a local file, in rows of 512 tokens as AWQ takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cmibq.data.base import CALIBRATIONS, Calibration, CalibSample
from cmibq.data.prompts import Encoded
from cmibq.data.records import read_records
from cmibq.errors import DataError
from cmibq.recipe import QuantRecipe

__all__ = ["ROW", "TEXTS", "read_texts", "rows_of", "shuffled"]

ROW = 512
TEXTS = "mit-han-lab/pile-val-backup"
"""The published texts, looked for in the Hugging Face cache where no file is named."""


def _text(where: str, item: Any) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str):
        raise DataError(f"{where}: no text; write a string or an object with the key 'text'")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{where}: has half a character (a lone surrogate)")
    return text


def read_texts(path: str, name: str = "data_path") -> list[CalibSample]:
    """Read texts: strings or ``{"text": ...}``, or the lines of a ``.txt`` file.

    Args:
        path: see `cmibq.data.records.find_file`.
        name: what the path is called, for messages.

    Raises:
        DataError: naming the file and the line, item or row.
    """
    return [
        CalibSample((), (), where, {"text": _text(where, item)}, where)
        for where, item in read_records(path, name)
    ]


def shuffled(samples: Sequence[CalibSample], seed: int) -> list[CalibSample]:
    """Return texts in the order in which Hugging Face's ``shuffle(seed=...)`` puts them."""
    return [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))]


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
    return shuffled(read_texts(recipe.data_path or TEXTS), recipe.seed)


def _encode(samples: Sequence[CalibSample], processor: Any, recipe: QuantRecipe) -> list[Encoded]:
    tokenizer = getattr(processor, "tokenizer", processor)
    tail = recipe.variant != "reference"
    return rows_of(samples, tokenizer, recipe.n_samples, tail=tail)


CALIBRATIONS.register("pileval")(Calibration(_read, _encode))
