"""What is measured: rows, their settings, cells. Everything was chosen on development scans."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "ABLATION",
    "COMPOSED",
    "CONTROLS",
    "HARM",
    "MAIN",
    "PLAN",
    "RATES",
    "ROWS",
    "SEEDS",
    "TWINS",
    "Cell",
    "Plan",
    "Row",
    "cells_of",
]

SEEDS: Final = (0, 1, 2)
HARM: Final = 0.3
"""Points that composing with an equally trained tower may cost at most."""
RATES: Final[dict[str, float]] = {"": 3e-3}
"""Largest learning rate of a row, chosen on development scans; "": of all others."""


@dataclass(frozen=True)
class Plan:
    """How a row is trained; the same for all.

    Args:
        steps: of `batch` pictures.
        batch: pictures of a step.
        pictures: training pictures; 0 = all of `cmibq.demo.album.COUNTS`.
        asked: development or test pictures; 0 = all.
    """

    steps: int = 600
    batch: int = 64
    pictures: int = 4000
    asked: int = 0


PLAN: Final = Plan()


@dataclass(frozen=True)
class Row:
    """One way of showing pictures to the reader.

    Args:
        title: in the tables.
        how: class of `benchmarks.calm.eyes`: single, composed, late, beside.
        pair: the two towers: "plain", "copy" (the anchor twice), "twin" (two anchors).
        config: fields of `CALMConfig` that differ from n = 2, 8 heads, gated attention.
        options: of the class; "hidden" is chosen so that all rows train as many parameters.
    """

    title: str
    how: str
    pair: str = "plain"
    config: tuple[tuple[str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


def _calm(title: str, **config: Any) -> Row:
    return Row(title, "composed", config=tuple(config.items()), options=(("shuffle", False),))


_SHUFFLED = (("shuffle", True),)
_PLAIN = (("shuffle", False),)
ROWS: Final[dict[str, Row]] = {
    "calm": _calm("composed (gated, n = 2, 8 heads)"),
    "anchor": Row("anchor alone", "single", options=(("which", 0), ("hidden", 273))),
    "augmenting": Row("augmenting tower alone", "single", options=(("which", 1), ("hidden", 120))),
    "copy": Row("composed with a copy of the anchor", "composed", "copy", options=_PLAIN),
    "shuffled": Row("composed, features of another picture", "composed", options=_SHUFFLED),
    "late": Row("late fusion only (both modules after the last layer)", "late"),
    "late_placed": Row(
        *("late fusion only, placed attention", "late"),
        config=(("fusion_strategy", "placed_attention"),),
    ),
    "late_add": Row(
        "late fusion only, simple_add", "late", config=(("fusion_strategy", "simple_add"),)
    ),
    "concat": Row(
        "channel concatenation", "beside", options=(("interleave", False), ("hidden", 101))
    ),
    "mof": Row(
        "interleaved tokens (MoF)", "beside", options=(("interleave", True), ("hidden", 83))
    ),
    "twin": Row("composed with an equal anchor", "composed", "twin", options=_PLAIN),
    "cross": _calm("cross_attention (norm: post)", fusion_strategy="cross_attention"),
    "bare": _calm("cross_attention, norm: none", fusion_strategy="cross_attention", norm="none"),
    "add": _calm("simple_add", fusion_strategy="simple_add"),
    "placed": _calm(
        "composed (placed attention, n = 2, 8 heads)", fusion_strategy="placed_attention"
    ),
    "n1": _calm("n = 1", composition_layers=1),
    "n4": _calm("n = 4", composition_layers=4),
    "n6": _calm("n = 6", composition_layers=6),
    "h1": _calm("1 head", attention_heads=1),
    "h4": _calm("4 heads", attention_heads=4),
    "h12": _calm("12 heads", attention_heads=12),
    "h16": _calm("16 heads", attention_heads=16),
    "mlp": _calm("mapping: mlp", dimension_mapping="mlp"),
    "attention": _calm("mapping: attention", dimension_mapping="attention"),
}
_LATE = ("late", "late_placed", "late_add")
CONTROLS: Final = ("anchor", "augmenting", "copy", "shuffled", *_LATE, "concat", "mof")
"""Rows that composition is judged against, at as many trainable parameters and steps."""
MAIN: Final = ("calm", *CONTROLS)
COMPOSED: Final = ("calm", "placed", "add")
"""Composed rows that are judged against the controls."""
TWINS: Final = ("twin",)
ABLATION: Final = tuple(r for r in ROWS if r not in (*MAIN, *TWINS))


@dataclass(frozen=True)
class Cell:
    """One row trained once, and all questions asked.

    Args:
        row: one of `ROWS`.
        rate: largest learning rate.
        seed: of what is trained and of the order of the pictures.
        split: whose questions are asked.
        plan: how it is trained.
    """

    row: str
    rate: float = 3e-3
    seed: int = 0
    split: str = "dev"
    plan: Plan = PLAN

    @property
    def stem(self) -> str:
        """Name of what is trained, whatever is asked of it."""
        return f"{self.row}-r{self.rate:g}-s{self.seed}-n{self.plan.steps}"

    @property
    def name(self) -> str:
        """Name of the cell's file."""
        return f"{self.stem}-{self.split}"

    def facts(self) -> dict[str, Any]:
        """Return all that the training is made of, as JSON values."""
        made = dataclasses.asdict(self)
        del made["split"]
        return made | {"made_of": dataclasses.asdict(ROWS[self.row])}


def cells_of(
    rows: Sequence[str],
    *,
    seeds: Sequence[int] = SEEDS,
    split: str = "dev",
    plan: Plan = PLAN,
) -> list[Cell]:
    """Return the cells of some rows, seed by seed."""
    return [
        Cell(row, RATES.get(row, RATES[""]), seed, split, plan) for seed in seeds for row in rows
    ]
