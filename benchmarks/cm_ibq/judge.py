"""Rate-distortion curves: bytes a point below float, and areas between curves.

A curve has a point per cell: mean bytes of a stream and mean quality (accuracy, or minus the
log-loss). Between points, the logarithm of the bytes is linear in the quality; a point that costs
more than another and is no better is left out. Intervals come from a bootstrap over scans that
draws all curves alike, so comparisons are paired.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cmibq.eval.bootstrap import Interval, PairedBootstrap

__all__ = ["Curves", "bd_rate", "bytes_at"]

Array = npt.NDArray[np.float64]
_GRID = 25


def _hull(size: Array, quality: Array) -> tuple[Array, Array]:
    """Return the points that none beats, by growing size; logarithms of the sizes."""
    order = np.argsort(size, kind="stable")
    size, quality = size[order], quality[order]
    best = np.maximum.accumulate(np.concatenate([[-np.inf], quality[:-1]]))
    kept = quality > best
    return np.log(size[kept]), quality[kept]


def bytes_at(size: Array, quality: Array, target: float) -> float:
    """Return the bytes where a curve reaches a quality, NaN where it never does.

    A curve whose smallest point is already better gives that point: it is not drawn on beyond.

    Example:
        >>> bytes_at(np.array([4.0, 1.0]), np.array([0.9, 0.7]), 0.8)
        2.0
    """
    logs, levels = _hull(np.asarray(size), np.asarray(quality))
    if target > levels[-1]:
        return float("nan")
    return float(np.exp(np.interp(target, levels, logs)))


def bd_rate(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """Return the mean change of bytes from curve b to curve a, -0.1 for ten per cent less.

    It is the mean of the difference of log bytes over the qualities that both have; NaN where
    there are none.

    Args:
        a: bytes and qualities of the points.
        b: likewise.

    References:
        Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001.

    Example:
        >>> one = np.array([1.0, 2.0]), np.array([0.5, 0.9])
        >>> round(bd_rate((one[0] / 2, one[1]), one), 12)
        -0.5
    """
    (logs, levels), (others, theirs) = _hull(*a), _hull(*b)
    low, high = max(levels[0], theirs[0]), min(levels[-1], theirs[-1])
    if not low < high:
        return float("nan")
    grid = np.linspace(low, high, _GRID)
    gaps = np.interp(grid, levels, logs) - np.interp(grid, theirs, others)
    return float(np.exp(np.trapezoid(gaps, grid) / (high - low)) - 1)


class Curves:
    """Several curves on the same questions.

    Args:
        points: curve -> its points, each (bytes, quality), one value per question, means over
            training seeds.
        level: quality of the float model, one value per question.
        clusters: for each question the scans it shows.
        resamples: draws.
    """

    def __init__(
        self,
        points: Mapping[str, Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]],
        level: npt.ArrayLike,
        clusters: Sequence[Sequence[Hashable]],
        *,
        resamples: int = 500,
    ) -> None:
        columns, self._at = [np.asarray(level, np.float64)], dict[str, range]()
        for name, some in points.items():
            self._at[name] = range(len(columns), len(columns) + 2 * len(some))
            columns += [np.asarray(x, np.float64) for pair in some for x in pair]
        self._boot = PairedBootstrap(np.stack(columns, 1), clusters, resamples=resamples)

    def _points(self, means: Array, name: str) -> tuple[Array, Array]:
        at = self._at[name]
        return means[at.start : at.stop : 2], means[at.start + 1 : at.stop : 2]

    def bytes_below(self, name: str, margin: float) -> Interval:
        """Return the bytes where a curve is `margin` below float."""
        return self._interval(lambda m: bytes_at(*self._points(m, name), m[0] - margin))

    def starts_above(self, name: str, margin: float) -> bool:
        """Tell whether a curve starts better than that, so that its bytes are a bound."""
        means = self._boot.means
        return bool(_hull(*self._points(means, name))[1][0] > means[0] - margin)

    def saving(self, name: str, other: str, margin: float) -> Interval:
        """Return the change of these bytes from `other`, NaN where `other` starts above."""
        if self.starts_above(other, margin):
            return Interval(math.nan, math.nan, math.nan, math.nan)

        def change(m: Array) -> float:
            ours, theirs = (bytes_at(*self._points(m, n), m[0] - margin) for n in (name, other))
            return ours / theirs - 1

        return self._interval(change)

    def bd_rate(self, name: str, other: str) -> Interval:
        """Return `bd_rate` from `other` to `name`."""
        return self._interval(lambda m: bd_rate(self._points(m, name), self._points(m, other)))

    def _interval(self, statistic: object) -> Interval:
        call = statistic if callable(statistic) else None
        assert call is not None

        def apply(means: Array) -> Array:
            rows = np.atleast_2d(means)
            found = np.array([call(np.maximum(row, _floor(row))) for row in rows])
            return found if means.ndim == 2 else found[0]

        return self._boot.interval(apply)


def _floor(row: Array) -> Array:
    """Return the least value of every column: bytes stay positive in every draw."""
    least = np.full_like(row, -np.inf)
    least[1::2] = 1e-3
    return least
