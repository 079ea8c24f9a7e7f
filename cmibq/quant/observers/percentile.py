"""The range of a row lies between two of its percentiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmibq.arrays import percentile
from cmibq.ops.library import view
from cmibq.ops.qparams import grid_of_range
from cmibq.quant.observers.base import OBSERVERS, Observer
from cmibq.quant.spec import QParams

__all__ = ["PercentileObserver", "grid"]


def grid(low: Tensor, high: Tensor, observer: Observer) -> QParams:
    """Return the grids of ranges, float32 [rows], by the formula of every observer."""
    spec = observer.spec
    scale, zero = grid_of_range(low, high, spec.bits, int(spec.range_mode))
    return QParams(scale, zero.to(torch.uint8), spec.bits)


@OBSERVERS.register("percentile")
@dataclass(frozen=True)
class PercentileObserver(Observer):
    """Grids that leave out the outermost elements of a row: exact, by rank.

    Args:
        spec: bits and range mode of the grids.
        keep: the range reaches from percentile ``100 - keep`` to percentile `keep`.

    Example:
        >>> from cmibq.quant.spec import PerTensor, QuantSpec
        >>> x = torch.cat([torch.linspace(-1, 1, 101), torch.tensor([100.0])])[None]
        >>> observer = PercentileObserver(QuantSpec(8, PerTensor()), keep=99.0)
        >>> float(observer.observe(x).scale) < 0.01
        True
    """

    keep: float = 99.9

    def observe(self, x: Tensor) -> QParams:
        """Return the grids of the rows of `x` [rows, cols]; ValueError on NaN and infinity."""
        ends = percentile(view(x.float().cpu()), [100 - self.keep, self.keep])
        low, high = torch.from_numpy(ends.astype("float32")).to(x.device).unbind(1)
        return grid(low, high, self)
