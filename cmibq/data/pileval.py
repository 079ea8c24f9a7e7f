"""Text calibration data from a local file, in rows of 512 tokens as AWQ takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cmibq.data.base import CALIBRATIONS, Calibration, CalibSample
from cmibq.data.prompts import Encoded
from cmibq.data.texts import read_texts, shuffled
from cmibq.errors import DataError
from cmibq.recipe import QuantRecipe

__all__ = ["ROW", "TEXTS", "rows_of"]

ROW = 512
TEXTS = "mit-han-lab/pile-val-backup"
"""The published texts, looked for in the Hugging Face cache where no file is named."""


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


def _read(recipe: QuantRecipe) -> Sequence[CalibSample]:
    return shuffled(read_texts(recipe.data_path or TEXTS), recipe.seed)


def _encode(samples: Sequence[CalibSample], processor: Any, recipe: QuantRecipe) -> list[Encoded]:
    tokenizer = getattr(processor, "tokenizer", processor)
    tail = recipe.variant != "reference"
    return rows_of(samples, tokenizer, recipe.n_samples, tail=tail)


CALIBRATIONS.register("pileval")(Calibration(_read, _encode))
