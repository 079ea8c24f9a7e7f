"""The range of a row is its minimum and maximum."""

from __future__ import annotations

from torch import Tensor

from cmibq.ops.qparams import qparams
from cmibq.quant.observers.base import OBSERVERS, Observer
from cmibq.quant.spec import QParams

__all__ = ["MinMaxObserver"]


@OBSERVERS.register("minmax")
class MinMaxObserver(Observer):
    """Grids that reach the smallest and the largest element: the published choice of AWQ and MBQ.

    Example:
        >>> import torch
        >>> from cmibq.quant.spec import PerTensor, QuantSpec
        >>> q = MinMaxObserver(QuantSpec(2, PerTensor())).observe(torch.tensor([[-1.0, 0.5, 2.0]]))
        >>> q.scale, q.zero_point
        (tensor([1.]), tensor([1], dtype=torch.uint8))
    """

    def observe(self, x: Tensor) -> QParams:
        """Return the grids of the rows of `x` [rows, cols]; raises ValueError on NaN."""
        scale, zero = qparams(x, self.spec.one_width, int(self.spec.range_mode))
        return QParams(scale, zero, self.spec.one_width)
