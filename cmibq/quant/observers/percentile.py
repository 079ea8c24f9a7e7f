"""The range of a row lies between two of its percentiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmibq.arrays import percentile
from cmibq.errors import ConfigError
from cmibq.ops.library import view
from cmibq.ops.qparams import grid_of_range
from cmibq.quant.observers.base import OBSERVERS, Observer
from cmibq.quant.spec import QParams

__all__ = ["PercentileObserver", "check_keep", "grid"]


def grid(low: Tensor, high: Tensor, observer: Observer) -> QParams:
    """Return the grids of ranges, float32 [rows], by the formula of every observer.

    Raises:
        ValueError: a range is so wide that its scale is infinite.
    """
    spec, bits = observer.spec, observer.spec.one_width
    scale, zero = grid_of_range(low, high, bits, int(spec.range_mode))
    if not bool(scale.isfinite().all()):
        row = int((~scale.isfinite()).nonzero()[0, 0])
        raise ValueError(
            f"row {row} reaches from {float(low[row]):g} to {float(high[row]):g}: the scale of "
            f"{bits} bits overflows; divide the tensor by a constant first"
        )
    return QParams(scale, zero.to(torch.uint8), bits)


def check_keep(keep: float) -> None:
    """Refuse a percentile that is not the upper end of a range.

    Raises:
        ConfigError: `keep` is outside 50..100.
    """
    if not 50 <= keep <= 100:
        raise ConfigError(f"keep is {keep}; the upper percentile of a range lies in 50..100")


@OBSERVERS.register("percentile")
@dataclass(frozen=True)
class PercentileObserver(Observer):
    """Grids that leave out the outermost elements of a row: exact, by rank.

    Args:
        spec: bits and range mode of the grids.
        keep: the range reaches from percentile ``100 - keep`` to percentile `keep`; 50..100.

    Example:
        >>> from cmibq.quant.spec import PerTensor, QuantSpec
        >>> x = torch.cat([torch.linspace(-1, 1, 101), torch.tensor([100.0])])[None]
        >>> observer = PercentileObserver(QuantSpec(8, PerTensor()), keep=99.0)
        >>> float(observer.observe(x).scale) < 0.01
        True
    """

    keep: float = 99.9

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def observe(self, x: Tensor) -> QParams:
        """Return the grids of the rows of `x` [rows, cols]; ValueError on NaN and infinity."""
        ends = percentile(view(x.float().cpu()), [100 - self.keep, self.keep])
        low, high = torch.from_numpy(ends.astype("float32")).to(x.device).unbind(1)
        return grid(low, high, self)
