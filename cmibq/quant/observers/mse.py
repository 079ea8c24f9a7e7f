"""The range of a row is the shrunken minimum and maximum with the least squared error."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cmibq.ops.qparams import qparams_mse
from cmibq.quant.observers.base import OBSERVERS, Observer
from cmibq.quant.spec import QParams

__all__ = ["MseObserver"]


@OBSERVERS.register("mse")
@dataclass(frozen=True)
class MseObserver(Observer):
    """Grids that clip outliers where that lowers the squared error of the row.

    Args:
        spec: bits and range mode of the grids.
        n_grid: ranges tried.
        max_shrink: range i is shrunk by ``1 - i * max_shrink / n_grid``.

    Example:
        >>> import torch
        >>> from cmibq.quant.spec import PerTensor, QuantSpec
        >>> x = torch.tensor([[0.0, 1.0, 2.0, 3.0] * 8 + [6.0]])
        >>> MseObserver(QuantSpec(2, PerTensor()), n_grid=2, max_shrink=1.0).observe(x).scale
        tensor([1.])
    """

    n_grid: int = 20
    max_shrink: float = 0.5

    def observe(self, x: Tensor) -> QParams:
        """Return the grids of the rows of `x` [rows, cols]; raises ValueError on NaN."""
        scale, zero, _ = qparams_mse(
            x,
            self.spec.one_width,
            int(self.spec.range_mode),
            n_grid=self.n_grid,
            max_shrink=self.max_shrink,
        )
        return QParams(scale, zero, self.spec.one_width)
