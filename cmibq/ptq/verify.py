"""After a run: read the result back and compare it with the float model on samples kept apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cmibq.data import CALIBRATIONS, Encoded, context_length, encode_calibration
from cmibq.errors import DataError
from cmibq.eval.answers import Answers, ask, random_text
from cmibq.eval.loading import open_model
from cmibq.eval.verify import compare
from cmibq.fileio import read_json, write_json
from cmibq.io import add_metadata, check_probe
from cmibq.models import LoadedModel
from cmibq.ptq.job import NOTE, Job

__all__ = ["VERIFIED", "Held", "hold_out", "verify_"]

VERIFIED = 8
"""Samples that the float model and the result are compared on, at most."""


@dataclass(frozen=True, eq=False)
class Held:
    """Samples to verify with, and what the float model says to them.

    Args:
        samples: inputs.
        apart: whether they were kept out of the calibration.
        before: of the float model.
    """

    samples: list[Encoded]
    apart: bool
    before: Answers


def _others(job: Job, loaded: LoadedModel) -> list[Encoded]:
    """Return samples of the calibration data that the calibration does not use."""
    recipe = job.recipe
    used = {s.where for s in job.samples[: recipe.n_samples]}
    wide = dataclasses.replace(recipe, n_samples=recipe.n_samples + VERIFIED)
    rest = [s for s in reversed(CALIBRATIONS[recipe.calib_data].read(wide)) if s.where not in used][
        :VERIFIED
    ]
    if not rest:
        return []
    plain: dict[str, Any] = {"variant": "default", "n_samples": len(rest)}
    plain |= {"few_shot_format": False, "interleave_format": False, "text_data_path": ""}
    single = dataclasses.replace(recipe, **plain)
    return encode_calibration(rest, loaded.processor, single, context_length(job.model_path))


def hold_out(job: Job, loaded: LoadedModel, samples: Sequence[Encoded]) -> Held | None:
    """Choose samples and ask the float model, before anything is changed.

    Args:
        job: the run.
        loaded: the float model.
        samples: the calibration samples, used where the data has no others.

    Returns:
        The samples and answers, or None if nothing is to be verified.
    """
    if not job.recipe.verify or job.output is None:
        return None
    if not job.samples:
        texts = random_text(loaded)
        return Held(texts, True, ask(loaded, texts))
    try:
        held = _others(job, loaded)
    except DataError:  # such as texts that are all too long
        held = []
    chosen = held or list(samples[:VERIFIED])
    return Held(chosen, bool(held), ask(loaded, chosen))


def verify_(job: Job, held: Held | None) -> dict[str, Any]:
    """Open what a run has written, compare it with the float model, and add that to its notes.

    Returns:
        ``{"verify": ...}``, or nothing where `held` is None.
    """
    if held is None or job.output is None:
        return {}
    loaded, package = open_model(job.output)
    probe = check_probe(loaded.model, package) if package else None
    found = compare(
        held.before,
        ask(loaded, held.samples),
        bits=package.manifest.fewest_bits if package else job.recipe.w_bit,
        samples=len(held.samples),
        held_out=held.apart,
        reload_exact=probe.exact if probe else None,
    )
    values = {"verify": found.to_json()}
    if package is not None:
        add_metadata(package, **values)
    else:
        write_json(job.output / NOTE, read_json(job.output / NOTE) | values)
    return values
