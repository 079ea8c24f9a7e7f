"""The same bits everywhere: what every other allocator has to beat."""

from __future__ import annotations

import numpy as np

from cmibq.alloc.base import ALLOCATORS, Allocation, Units
from cmibq.errors import ConfigError

__all__ = ["uniform"]


@ALLOCATORS.register("uniform")
def uniform(units: Units, budget: int) -> Allocation:
    """Return the largest width that all units can have within a budget.

    Args:
        units: what gets bits.
        budget: most that all units may cost together.

    Raises:
        ConfigError: not even the smallest width fits.

    Example:
        >>> d = np.array([[9.0, 4.0, 1.0], [5.0, 3.0, 2.0]], np.float32)
        >>> uniform(Units((2, 3, 4), d, np.array([2, 3, 4])), 7).bits
        array([3, 3], dtype=uint8)
    """
    totals = units.costs().sum(0)
    fits = np.flatnonzero(totals <= budget)
    if not len(fits):
        raise ConfigError(f"budget is {budget}; {units.bits[0]} bits everywhere take {totals[0]}")
    j = int(fits[-1])
    bits = np.full(len(units.distortion), units.bits[j], np.uint8)
    total = float(units.distortion[:, j].astype(np.float64).sum())
    return Allocation(bits, total, int(totals[j]), float("inf"))
