"""What a quantisation run gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmibq.recipe import QuantRecipe

__all__ = ["QuantizeResult"]


@dataclass(frozen=True)
class QuantizeResult:
    """What a run made.

    Args:
        recipe: what was asked for.
        fingerprint: equal for runs that must give the same.
        output_path: folder of the quantised model, or None.
        scale_path: file of scales, or None.
        skipped: everything was there already.
        seconds: wall time of this call.
        layer_errors: layer -> relative error of its output on calibration tokens; empty if nothing
            was calibrated.
        groups: per group of layers: block, group, ratio, losses, and `vision_weight`, what an image
            token counted against an answer token (None without reweight).
        verification: what a comparison of the result with the float model gave, as
            `cmibq.eval.verify.Verification.to_json`; None if it was not asked for.
        budget: with ``max_bytes``: sizes and quality of uniform and of mixed bits, and which was
            chosen (`cmibq.ptq.budget.Choice`).
    """

    recipe: QuantRecipe
    fingerprint: str
    output_path: Path | None
    scale_path: Path | None
    skipped: bool
    seconds: float
    layer_errors: dict[str, float] = field(default_factory=dict, repr=False)
    groups: list[dict[str, Any]] = field(default_factory=list, repr=False)
    verification: dict[str, Any] | None = field(default=None, repr=False)
    budget: dict[str, Any] | None = field(default=None, repr=False)
