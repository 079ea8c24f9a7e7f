"""The range of a row between percentiles of a histogram, also of one that grew over batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmibq.arrays import Histogram
from cmibq.ops.library import view
from cmibq.quant.observers.base import OBSERVERS, Observer
from cmibq.quant.observers.percentile import check_keep, grid
from cmibq.quant.spec import QParams

__all__ = ["HistogramObserver"]


@OBSERVERS.register("histogram")
@dataclass(frozen=True)
class HistogramObserver(Observer):
    """Grids between two percentiles, right to one bin, that need not see all elements at once.

    For activations that arrive in batches, count them with `cmibq.arrays.Histogram` and ask
    `of_histograms`. `observe` counts each row of one matrix.

    Args:
        spec: bits and range mode of the grids.
        keep: the range reaches from percentile ``100 - keep`` to percentile `keep`; 50..100, where
            100 is all.
        size: bins.

    Example:
        >>> from cmibq.quant.spec import PerTensor, QuantSpec
        >>> seen = Histogram()
        >>> for batch in ([0.0, 1.0], [2.55]):
        ...     seen.update(np.array(batch, np.float32))
        >>> HistogramObserver(QuantSpec(8, PerTensor()), keep=100.0).of_histograms([seen]).scale
        tensor([0.0100])
    """

    keep: float = 99.99
    size: int = 2048

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def observe(self, x: Tensor) -> QParams:
        """Return the grids of the rows of `x` [rows, cols]; ValueError on NaN and infinity."""
        counted = []
        for row in view(x.float().cpu()):
            counted.append(Histogram(self.size))
            counted[-1].update(row)
        q = self.of_histograms(counted)
        return QParams(q.scale.to(x.device), q.zero_point.to(x.device), q.bits)

    def of_histograms(self, counted: list[Histogram]) -> QParams:
        """Return one grid per histogram; ValueError where one is empty."""
        ends = [[h.percentile(q) for q in (100 - self.keep, self.keep)] for h in counted]
        low, high = torch.from_numpy(np.array(ends, np.float32).reshape(-1, 2)).unbind(1)
        return grid(low, high, self)
