"""Image-text calibration data: conversations about images, such as captions of COCO pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from cmibq.data.base import CALIBRATIONS, Calibration, CalibSample, check_images, read_items
from cmibq.data.prompts import Encoded, encode
from cmibq.recipe import QuantRecipe

__all__ = ["choose"]

_logger = logging.getLogger(__name__)


def choose(samples: list[CalibSample], count: int, seed: int, repeat: bool) -> list[CalibSample]:
    """Shuffle and take the first `count` samples.

    Args:
        samples: all of them.
        count: how many.
        seed: of NumPy's default generator, as published.
        repeat: start again from the first where there are fewer; otherwise each is taken once.
    """
    mixed = list(samples)
    np.random.default_rng(seed).shuffle(mixed)
    if len(mixed) < count and not repeat:
        _logger.info("there are %d samples only, %d were asked for", len(mixed), count)
        count = len(mixed)
    return [mixed[i % len(mixed)] for i in range(count)]


def _read(recipe: QuantRecipe) -> list[CalibSample]:
    samples = read_items(recipe.data_path, recipe.image_folder)
    chosen = choose(samples, recipe.n_samples, recipe.seed, recipe.variant == "reference")
    check_images(chosen)
    return chosen


def _encode(samples: Sequence[CalibSample], processor: Any, recipe: QuantRecipe) -> list[Encoded]:
    return encode(samples, processor)


CALIBRATIONS.register("coco")(Calibration(_read, _encode))
