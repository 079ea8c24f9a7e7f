"""The range of a row is clipped where the codes keep its distribution best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmibq.arrays import klclip
from cmibq.ops.library import view
from cmibq.quant.observers.base import OBSERVERS, Observer
from cmibq.quant.observers.percentile import grid
from cmibq.quant.spec import QParams

__all__ = ["KlObserver"]


@OBSERVERS.register("kl")
@dataclass(frozen=True)
class KlObserver(Observer):
    """Grids over ``+-clip``, the clip of least Kullback-Leibler divergence (entropy calibration).

    An asymmetric grid covers the part of ``+-clip`` that the row reaches.

    Args:
        spec: bits and range mode of the grids; 1 bit is clipped as 2 are.
        size: bins of the histogram of a row; 0: 2048, or fewer for short rows.

    References:
        Migacz, "8-bit inference with TensorRT", GTC 2017.

    Example:
        >>> from cmibq.quant.spec import PerTensor, QuantSpec
        >>> x = torch.cat([torch.linspace(-1, 1, 999), torch.linspace(2, 20, 7)])[None]
        >>> observer = KlObserver(QuantSpec(4, PerTensor(), symmetric=True), size=512)
        >>> float(observer.observe(x).scale) < 1
        True
    """

    size: int = 0

    def observe(self, x: Tensor) -> QParams:
        """Return the grids of the rows of `x` [rows, cols]; ValueError on NaN and infinity."""
        bits = max(self.spec.one_width, 2)
        fair = min(2048, max(2 ** (bits + 1), x.shape[1] // 4))
        clip, _ = klclip(view(x.float().cpu()), bits, size=self.size or fair)
        edge = torch.from_numpy(clip).to(x.device)
        low, high = x.float().amin(1), x.float().amax(1)
        return grid(torch.maximum(low, -edge), torch.minimum(high, edge), self)
