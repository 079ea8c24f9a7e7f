"""The allocation of least total distortion."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cmibq.alloc.base import ALLOCATORS, MENUS, Allocation, Units
from cmibq.arrays import allocate
from cmibq.errors import ConfigError

__all__ = ["allocate_bits", "exact"]


@ALLOCATORS.register("exact")
def exact(units: Units, budget: int) -> Allocation:
    """Return the bits of least total distortion within a budget (`cmibq.arrays.allocate`).

    Args:
        units: what gets bits.
        budget: most that all units may cost together.

    Raises:
        ValueError: the budget is below the least cost, or a distortion is NaN.

    Example:
        >>> d = np.array([[9.0, 4.0, 1.0], [5.0, 3.0, 2.0]], np.float32)
        >>> exact(Units((2, 3, 4), d, np.array([2, 3, 4])), 7).bits
        array([4, 3], dtype=uint8)
    """
    found = allocate(units.distortion, units.cost, budget, weight=units.weight)
    bits = np.array(units.bits, np.uint8)[found.option]
    return Allocation(bits, found.distortion, found.cost, found.gap)


def allocate_bits(
    distortion: ArrayLike,
    mean: float,
    *,
    menu: str = "all",
    elements: ArrayLike | None = None,
) -> Allocation:
    """Return the best bits whose mean per element is at most `mean`.

    Args:
        distortion: [units, widths of the menu], converted to float32.
        mean: most bits per element on average.
        menu: name in `MENUS`: the widths that the target runs.
        elements: elements of each unit; None = as many in each.

    Returns:
        `Allocation` with cost in bits.

    Raises:
        ConfigError: `mean` is below the smallest width of the menu.

    Example:
        >>> variance = np.array([16.0, 1.0])
        >>> table = variance[:, None] * 4.0 ** -np.arange(1, 9)
        >>> allocate_bits(table, 4.0).bits
        array([5, 3], dtype=uint8)
    """
    bits = MENUS[menu].bits
    d = np.ascontiguousarray(distortion, np.float32)
    weight = None if elements is None else np.ascontiguousarray(elements, np.int64)
    total = len(d) if weight is None else int(weight.sum())
    if not mean >= bits[0]:
        raise ConfigError(f"mean is {mean}; menu {menu!r} has no fewer than {bits[0]} bits")
    budget = int(np.floor(min(mean, bits[-1]) * total + 1e-6))
    return exact(Units(bits, d, np.array(bits, np.int64), weight), budget)
