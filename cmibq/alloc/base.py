"""What is allocated, what comes of it, and the lists of allocators and of menus of bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import ConfigError
from cmibq.registry import Registry

__all__ = ["ALLOCATORS", "MENUS", "Allocation", "Allocator", "Menu", "Units"]

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Menu:
    """The widths that a deployment target can run.

    Args:
        bits: allowed widths, growing, each 1..8.

    Raises:
        ConfigError: widths that do not grow, or lie outside 1..8.
    """

    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        grows = all(a < b for a, b in zip(self.bits, self.bits[1:], strict=False))
        if not self.bits or not grows or self.bits[0] < 1 or self.bits[-1] > 8:
            raise ConfigError(f"bits is {self.bits!r}; a menu has growing widths, each 1..8")


MENUS: Registry[Menu] = Registry("menu")
MENUS.register("all")(Menu((1, 2, 3, 4, 5, 6, 7, 8)))
MENUS.register("package")(Menu((2, 3, 4, 5, 6, 8)))
"""The widths that packed layers have."""
MENUS.register("decode")(Menu((2, 3, 4, 8)))
"""The widths with a fast kernel for one token at a time."""
MENUS.register("awq")(Menu((4,)))
MENUS.register("int8")(Menu((8,)))


@dataclass(frozen=True)
class Units:
    """Units that get bits, and what each width would do to them.

    Args:
        bits: the widths, growing: option j has ``bits[j]``.
        distortion: float32 [units, options]; +infinity where a unit must not have a width.
        cost: int64 [units, options], in the unit of the budget: bits, or bytes on disk
            (`cmibq.alloc.size`). [options] with `weight` for the same cost per element everywhere.
        weight: int64 [units] elements of each unit, only with costs [options]; None = 1.

    Raises:
        ConfigError: shapes that do not belong together.
    """

    bits: tuple[int, ...]
    distortion: NDArray[np.float32]
    cost: I64
    weight: I64 | None = None

    def __post_init__(self) -> None:
        Menu(self.bits)
        n, m = self.distortion.shape
        if m != len(self.bits):
            raise ConfigError(f"distortion has {m} columns for {len(self.bits)} widths")
        if self.cost.shape not in ((m,), (n, m)):
            raise ConfigError(f"cost is {self.cost.shape}; allowed are {(m,)} and {(n, m)}")
        if self.weight is not None and (self.weight.shape != (n,) or self.cost.ndim == 2):
            raise ConfigError(f"weight needs one element per unit ({n}) and costs of shape {(m,)}")

    def costs(self) -> I64:
        """Return the cost of every option of every unit, int64 [units, options]."""
        if self.cost.ndim == 2:
            return self.cost
        weight = np.ones(len(self.distortion), np.int64) if self.weight is None else self.weight
        return weight[:, None] * self.cost


@dataclass(frozen=True)
class Allocation:
    """Bits of every unit.

    Args:
        bits: uint8 [units].
        distortion: total of what was chosen.
        cost: total of what was chosen, at most the budget.
        gap: how far `distortion` can be from the least possible; 0.0: proven; infinite: not known.
    """

    bits: NDArray[np.uint8]
    distortion: float
    cost: int
    gap: float


Allocator = Callable[[Units, int], Allocation]
ALLOCATORS: Registry[Allocator] = Registry("allocator")
