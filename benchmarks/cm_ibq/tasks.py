"""What is measured: rows, their settings, cells. Everything was chosen on development scans."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cm_ibq.fit import Plan
from cmibq.demo.scenes import KINDS

__all__ = [
    "FIXED",
    "IMAGE_ROWS",
    "LEFT_OUT",
    "PLAIN",
    "ROWS",
    "SEEDS",
    "UNIFORM",
    "Cell",
    "Row",
    "cells_of",
    "image_cells",
    "left_out_cells",
]

SEEDS = (0, 1, 2)
PLAIN = ("tensor", "channel", "token", "lsq", "water", "top")
"""Rows that have no rate to train."""
FIXED = (*PLAIN, "flat", "ours")
"""Rows whose codes can be stored at a fixed length; reported with and without the entropy coder."""
LEFT_OUT = KINDS


@dataclass(frozen=True)
class Row:
    """One way of sending image tokens.

    Args:
        title: in the tables.
        how: class of coder: one of uniform, stepped, factorized, top, layer.
        kind: passed to it; ``"flat"``: the layer's bits are the same for all channels.
        points: (channels, bits, nats per bit) of every cell; bits are those of a code, levels for
            stepped, kept tokens for top, the mean target for the layer.
        fixed_encoder: the encoder stays the KLT.
        config: further fields of `CMIBQConfig`.
        curve: row whose curve its points belong to, where not its own.
    """

    title: str
    how: str
    kind: str = ""
    points: tuple[tuple[int, float, float], ...] = ()
    fixed_encoder: bool = False
    config: tuple[tuple[str, Any], ...] = field(default=())
    curve: str = ""

    @property
    def task(self) -> bool:
        """Whether the coder is told the question."""
        return dict(self.config).get("mode") == "task"


_LENGTHS = ((13, 1, 0.0), (13, 2, 0.0))
_SWEEP = ((13, 16, 3e-4), (13, 8, 1e-3), (13, 8, 3e-3))
_BUDGETS = (
    *((13, 1.25, 1e-2), (13, 1.25, 3e-3), (13, 1.25, 1e-3), (13, 1.5, 3e-4)),
    *((13, 1.08, 1e-3), (13, 2, 3e-4)),
)
# 13 principal axes of the features stand out (the next is ten times weaker): digits and colours.
ROWS: dict[str, Row] = {
    "tensor": Row("static uniform, per tensor", "uniform", "tensor", _LENGTHS),
    "channel": Row("static uniform, per channel", "uniform", "channel", _LENGTHS),
    "token": Row("dynamic uniform, per token", "uniform", "token", _LENGTHS),
    "lsq": Row("LSQ, per channel", "uniform", "lsq", _LENGTHS),
    "water": Row("KLT + reverse water-filling", "uniform", "water", _LENGTHS, True),
    "top": Row("top tokens at 8 bits", "top", "", ((13, 2, 0.0), (13, 3, 0.0))),
    "klt": Row("uniform step + KLT + coder", "stepped", "", _SWEEP, True),
    "step": Row("uniform step, encoder trained", "stepped", "", _SWEEP),
    "factorized": Row(
        *("CompressAI's EntropyBottleneck", "factorized", ""),
        ((13, 4, 1e-3), (13, 4, 3e-3), (13, 4, 1e-2)),
    ),
    "flat": Row(
        *("this layer, flat bits", "layer", "flat"),
        ((13, 1, 1e-3), (13, 2, 1e-3)),
    ),
    "ours": Row("this layer", "layer", "", _BUDGETS, config=(("min_bits", 1),)),
    "low": Row(
        *("this layer, channels may vanish", "layer", ""),
        ((13, 0.7, 1e-3), (13, 0.85, 1e-3), (13, 1, 1e-3)),
        config=(("min_bits", 0),),
        curve="ours",
    ),
    "task": Row(
        *("this layer, question known", "layer", "flat"),
        ((13, 2, 3e-3),),
        config=(("mode", "task"), ("n_maps", 1), ("hidden_dim", 256)),
    ),
}
IMAGE_ROWS: dict[str, tuple[int, ...]] = {
    "jpeg": (5, 15, 30, 50, 70, 85, 95),
    "webp": (0, 10, 30, 50, 70, 85, 95),
}
"""The picture itself, at each quality, into the whole model."""

_PLAN = Plan()
UNIFORM = "lsq"
"""The plain rounding that unseen questions are compared with."""
_WITHOUT = (
    *(("ours", (13, 1.25, 1e-3)), ("task", (13, 2, 3e-3))),
    *((UNIFORM, (13, 1, 0.0)), (UNIFORM, (13, 2, 0.0))),
)
"""Rows and points that are trained without a kind of question."""


@dataclass(frozen=True)
class Cell:
    """One coder trained once, and all questions asked through it.

    Args:
        row: one of `ROWS` or `IMAGE_ROWS`, or ``"float"``.
        channels: L.
        bits: see `Row`; the quality of a picture.
        weight: nats per bit.
        seed: of the coder and of the order of the pictures.
        model: see `benchmarks.cm_ibq.vlm.Frozen`.
        split: whose questions are asked.
        left_out: kind of question that training never asks.
        plan: how it is trained.
    """

    row: str
    channels: int = 0
    bits: float = 0.0
    weight: float = 0.0
    seed: int = 0
    model: str = "demo"
    split: str = "dev"
    left_out: str = ""
    plan: Plan = _PLAN

    @property
    def stem(self) -> str:
        """Name of what is trained, whatever is asked of it."""
        point = f"L{self.channels}-b{self.bits:g}-w{self.weight:g}"
        parts = [self.model, self.row, point, f"s{self.seed}", f"n{self.plan.steps}"]
        return "-".join(parts + ([f"without-{self.left_out}"] if self.left_out else []))

    @property
    def name(self) -> str:
        """Name of the cell's file."""
        return f"{self.stem}-{self.split}"

    def facts(self) -> dict[str, Any]:
        """Return all that the training is made of, as JSON values."""
        made = dataclasses.asdict(self)
        del made["split"]
        row = ROWS.get(self.row)
        return made | {"how": None if row is None else [row.how, row.kind, *map(list, row.config)]}


def cells_of(
    rows: Sequence[str],
    *,
    seeds: Sequence[int] = SEEDS,
    model: str = "demo",
    split: str = "dev",
    plan: Plan | None = None,
) -> list[Cell]:
    """Return the cells of some rows, seed by seed."""
    plan = plan or Plan()
    return [
        Cell(row, *point, seed, model, split, "", plan)
        for seed in seeds
        for row in rows
        for point in ROWS[row].points
    ]


def image_cells(model: str = "demo", split: str = "dev") -> list[Cell]:
    """Return the float cell and those of compressed pictures."""
    found = [Cell("float", model=model, split=split)]
    return found + [
        Cell(row, bits=quality, model=model, split=split)
        for row, qualities in IMAGE_ROWS.items()
        for quality in qualities
    ]


def left_out_cells(
    kind: str,
    *,
    seeds: Sequence[int] = SEEDS,
    split: str = "dev",
    plan: Plan | None = None,
    rows: Sequence[str] = ("ours", "task", UNIFORM),
) -> list[Cell]:
    """Return the cells of training without one kind of question: the layer and plain rounding."""
    plan = plan or Plan()
    return [
        Cell(row, *point, seed, "demo", split, kind, plan)
        for seed in seeds
        for row, point in _WITHOUT
        if row in rows
    ]
