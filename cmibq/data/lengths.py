"""How many tokens a model can take, and samples that have more."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmibq.data.base import CALIBRATIONS, CalibSample
from cmibq.data.prompts import Encoded
from cmibq.errors import DataError
from cmibq.fileio import read_json
from cmibq.recipe import QuantRecipe

__all__ = ["context_length", "encode_calibration", "fitting"]

_TEXT_PARTS = ("text_config", "llm_config", "language_config", "decoder_config")
_logger = logging.getLogger(__name__)


def context_length(folder: str | os.PathLike[str]) -> int | None:
    """Return how many tokens the language model of a folder has positions for.

    Args:
        folder: model folder with ``config.json``.

    Returns:
        ``max_position_embeddings`` of the decoder; None where the file does not say.
    """
    config = read_json(Path(folder) / "config.json")
    parts: list[Mapping[str, Any]] = [config]
    parts += [config[name] for name in _TEXT_PARTS if isinstance(config.get(name), dict)]
    found = [p.get("max_position_embeddings") for p in reversed(parts)]
    return next((n for n in found if isinstance(n, int) and n > 0), None)


def fitting(
    samples: Sequence[Encoded], context: int | None, *, skip: bool = False
) -> list[Encoded]:
    """Refuse samples that are longer than the model's context, or leave them out.

    Args:
        samples: encoded samples.
        context: most tokens; None = no limit.
        skip: leave long samples out, each with a warning that names it.

    Raises:
        DataError: a sample is too long, or none is left.
    """
    kept = []
    for sample in samples:
        if context is None or len(sample) <= context:
            kept.append(sample)
            continue
        fault = (
            f"{sample.sample.where}: {len(sample)} tokens, and the model takes {context}; shorten"
            " the item, or set bad_items to skip"
        )
        if not skip:
            raise DataError(fault)
        _logger.warning("left out: %s", fault)
    if samples and not kept:
        raise DataError(f"all {len(samples)} samples are longer than the model's {context} tokens")
    return kept


def encode_calibration(
    samples: Sequence[CalibSample], processor: Any, recipe: QuantRecipe, context: int | None
) -> list[Encoded]:
    """Turn the calibration samples of a recipe into tokens the model can take.

    Args:
        samples: what `Calibration.read` returned; none give none.
        processor: the model's processor.
        recipe: what to do.
        context: see `context_length`.

    Raises:
        DataError: a sample cannot be encoded or is longer than the context; names it.
    """
    if not samples:
        return []
    made = CALIBRATIONS[recipe.calib_data].encode(samples, processor, recipe)
    return fitting(made, context, skip=recipe.bad_items == "skip")
