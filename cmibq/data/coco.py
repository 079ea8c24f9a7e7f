"""Image-text calibration data: conversations about images, such as captions of COCO pictures."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cmibq.data.base import CALIBRATIONS, Calibration, CalibSample, check_images
from cmibq.data.join import few_shot, interleave, long_texts
from cmibq.data.pileval import TEXTS
from cmibq.data.prompts import Encoded, encode
from cmibq.data.records import find_file
from cmibq.data.shapes import read_items
from cmibq.data.texts import read_texts, shuffled
from cmibq.errors import DataError
from cmibq.recipe import QuantRecipe

__all__ = ["choose"]

_NAMED = 20
_logger = logging.getLogger(__name__)


def choose(
    samples: Sequence[CalibSample],
    count: int,
    seed: int,
    repeat: bool,
    usable: Callable[[CalibSample], bool] | None = None,
) -> list[CalibSample]:
    """Shuffle and take the first `count` samples.

    Args:
        samples: all of them.
        count: how many.
        seed: of NumPy's default generator, as published.
        repeat: start again from the first where there are fewer; otherwise each is taken once.
        usable: leaves out those for which it is false; asked only as long as more are needed.
    """
    mixed = list(samples)
    np.random.default_rng(seed).shuffle(mixed)
    if usable is not None:
        mixed = list(itertools.islice(filter(usable, mixed), count))
    if len(mixed) < count and not repeat:
        _logger.info("there are %d samples only, %d were asked for", len(mixed), count)
        count = len(mixed)
    return [mixed[i % len(mixed)] for i in range(count)] if mixed else []


def _read(recipe: QuantRecipe) -> list[CalibSample]:
    bad: list[DataError] | None = [] if recipe.bad_items == "skip" else None
    samples = read_items(recipe.data_path, recipe.image_folder, bad=bad)
    if recipe.interleave_format:
        find_file(recipe.text_data_path or TEXTS, "text_data_path")

    def opens(sample: CalibSample) -> bool:
        try:
            check_images([sample])
        except DataError as error:
            if bad is None:
                raise
            bad.append(error)
            return False
        return True

    repeat = recipe.variant == "reference"
    chosen = choose(
        samples, recipe.n_samples, recipe.seed, repeat, opens if bad is not None else None
    )
    check_images(chosen)
    for error in (bad or [])[:_NAMED]:
        _logger.warning("left out: %s", error)
    if bad and len(bad) > _NAMED:
        _logger.warning("left out: %d more items", len(bad) - _NAMED)
    if not chosen:
        raise DataError(f"{recipe.data_path} has no item that can be used; see the warnings")
    return chosen


def _encode(samples: Sequence[CalibSample], processor: Any, recipe: QuantRecipe) -> list[Encoded]:
    made, published = encode(samples, processor), recipe.variant == "reference"
    if recipe.few_shot_format:
        return few_shot(made, tail=not published)
    if recipe.interleave_format:
        tokenizer = getattr(processor, "tokenizer", processor)
        path = recipe.text_data_path or TEXTS
        texts = shuffled(read_texts(path, "text_data_path"), recipe.seed)
        pairs = len(made) // 2
        count = 2 * pairs - 1 if published else pairs
        rows = long_texts(texts, tokenizer, max(count, 1), path)
        return interleave(made, rows, published=published)
    return made


CALIBRATIONS.register("coco")(Calibration(_read, _encode))
