"""What an observer is, and the list of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cmibq.quant.spec import QParams, QuantSpec
from cmibq.registry import Registry

__all__ = ["OBSERVERS", "Observer"]


@dataclass(frozen=True)
class Observer:
    """Looks at a matrix and chooses a grid for each of its rows.

    Args:
        spec: bits and range mode of the grids.
    """

    spec: QuantSpec

    def observe(self, x: Tensor) -> QParams:
        """Return the grids of the rows of `x` [rows, cols], contiguous."""
        raise NotImplementedError


OBSERVERS: Registry[type[Observer]] = Registry("observer")
