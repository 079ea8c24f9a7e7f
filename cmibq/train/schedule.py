"""The target bits of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cmibq.errors import ConfigError
from cmibq.recipe.cm_ibq import CMIBQConfig

__all__ = ["BitSchedule"]


@dataclass(frozen=True)
class BitSchedule:
    """Mean bits from `start` to `end` over optimiser steps, held before and after.

    Args:
        start: bits of the first step.
        end: bits of the last.
        steps: optimiser steps of the training.
        kind: linear, cosine or step.
        hold_start: share of the steps that stay at `start`.
        hold_end: share that stays at `end`; these run on frozen integer maps.
        levels: values that the kind step takes.

    Example:
        >>> schedule = BitSchedule(8, 4, 11, hold_start=0.0, hold_end=0.0)
        >>> [schedule.bits(step) for step in (0, 5, 10)]
        [8.0, 6.0, 4.0]
    """

    start: float
    end: float
    steps: int
    kind: str = "linear"
    hold_start: float = 0.1
    hold_end: float = 0.2
    levels: int = 4

    @classmethod
    def of(cls, config: CMIBQConfig, steps: int) -> BitSchedule:
        """Return the schedule of a configuration over `steps` steps."""
        c = config
        return cls(
            *(c.stage1_bits, c.stage2_bits, steps, c.schedule),
            *(c.hold_start, c.hold_end, c.schedule_steps),
        )

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; a schedule needs at least 1")

    @property
    def freeze_step(self) -> int:
        """The first step on frozen integer maps; `steps` where there is none."""
        return self.steps - math.floor(self.hold_end * self.steps)

    def bits(self, step: int) -> float:
        """Return the target of a step, counted from 0; beyond the last one, the end."""
        first = math.floor(self.hold_start * self.steps)
        last = max(self.freeze_step - 1, first + 1)
        share = min(max((step - first) / (last - first), 0.0), 1.0)
        if self.kind == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        elif self.kind == "step":
            share = min(math.floor(share * self.levels) / max(self.levels - 1, 1), 1.0)
        return self.start + (self.end - self.start) * share
