"""Histograms that grow, exact percentiles, and the clip of least divergence."""

from __future__ import annotations

import math
import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmibq.runtime import kernels

__all__ = ["Histogram", "klclip", "percentile"]

_FARTHEST = 2**29  # places of bins are 32-bit integers in the fast kernel
_MOST_BINS = 2**20

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def _bins(size: int) -> int:
    """Return the number of bins; ValueError if there cannot be so many, TypeError if it is none."""
    try:
        count = operator.index(size)
    except TypeError:
        raise TypeError(f"size is {size!r}; give a number of bins, an integer") from None
    if not 2 <= count <= _MOST_BINS:
        raise ValueError(f"size is {size}; a histogram has at least 2 bins, at most {_MOST_BINS}")
    return count


class Histogram:
    """Counts of all elements seen so far, over a range that grows with them.

    Bins are ``2**exponent`` wide and start at multiples of that. A range that needs more bins than
    `size` doubles their width: neighbours are added in pairs, so every count stays exact. The
    result depends only on what was seen, not on the order, the batches or the threads. One
    histogram is for one Python thread at a time: give each its own, and `merge` them.

    Args:
        size: bins, 2..2**20.

    Raises:
        ValueError: fewer bins, or more.

    Example:
        >>> h = Histogram(4)
        >>> for batch in ([0.0, 1.0], [3.5], [7.0]):
        ...     h.update(np.array(batch, np.float32))
        >>> h.width, h.edges.tolist(), h.counts.tolist()
        (2.0, [0.0, 2.0, 4.0, 6.0, 8.0], [2, 1, 0, 1])
    """

    def __init__(self, size: int = 2048) -> None:
        self.size = _bins(size)
        self.low = math.inf
        self.high = -math.inf
        self._exponent = -120
        self._first = 0
        self._counts = np.zeros(size, np.int64)

    def update(self, x: F32) -> None:
        """Count the elements of `x`, float32 of any shape; ValueError on NaN and infinity.

        A call that fails or is interrupted has counted nothing.
        """
        x = np.ascontiguousarray(x).reshape(1, -1)
        if not x.size:
            return
        k = kernels()
        low, high = np.empty(1, np.float32), np.empty(1, np.float32)
        k.minmax_row(x, low, high)
        if not (math.isfinite(low[0]) and math.isfinite(high[0])):
            raise ValueError(f"x reaches from {low[0]} to {high[0]}; every element must be finite")
        work = np.empty(k.histogram_workspace(x.size, self.size), np.uint8)
        before = dict(self.__dict__)
        try:
            self._grow(float(low[0]), float(high[0]))
            k.histogram(x[0], self._exponent, self._first, self._counts, work)
        except BaseException:
            self.__dict__.update(before)
            raise

    def merge(self, other: Histogram) -> None:
        """Add what another histogram has seen; ValueError if it has another number of bins."""
        if other.size != self.size:
            raise ValueError(f"the other histogram has {other.size} bins, this one {self.size}")
        if not other.total:
            return
        self._grow(other.low, other.high)
        used = np.flatnonzero(other._counts)
        place = (other._first + used) >> (self._exponent - other._exponent)
        np.add.at(self._counts, place - self._first, other._counts[used])

    def _grow(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        exponent = self._exponent
        while True:
            first, last = (math.floor(math.ldexp(end, -exponent)) for end in (self.low, self.high))
            if last - first < self.size and max(-first, last) <= _FARTHEST:
                break
            exponent += 1
        used = np.flatnonzero(self._counts)
        counts = np.zeros_like(self._counts)
        place = ((self._first + used) >> (exponent - self._exponent)) - first
        np.add.at(counts, place, self._counts[used])
        self._exponent, self._first, self._counts = exponent, first, counts

    @property
    def counts(self) -> NDArray[np.int64]:
        """Counts per bin, int64 [size]."""
        return self._counts.copy()

    @property
    def total(self) -> int:
        """Elements seen."""
        return int(self._counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1.0, self._exponent)

    @property
    def edges(self) -> F64:
        """Edges of the bins, float64 [size + 1]."""
        return np.asarray((self._first + np.arange(self.size + 1)) * self.width, np.float64)

    def percentile(self, q: float) -> float:
        """Return the percentile `q`, 0..100, to one bin: linear within it, never outside the range.

        Raises:
            ValueError: nothing was seen, or `q` is outside 0..100.
        """
        if not self.total or not 0 <= q <= 100:
            raise ValueError(f"q is {q} of {self.total} elements; allowed are 0..100 of some")
        below = np.concatenate([[0], np.cumsum(self._counts)])
        want = q / 100 * self.total
        at = min(int(np.searchsorted(below, want, side="left")), self.size)
        at = max(at - 1, 0)
        share = (want - below[at]) / max(int(self._counts[at]), 1)
        return float(np.clip(self.edges[at] + share * self.width, self.low, self.high))


def percentile(x: F32, q: ArrayLike) -> F64:
    """Return exact percentiles of every row: what ``numpy.percentile`` gives in float64.

    The elements of the two ranks around each percentile are found by counting and selecting, not
    by sorting, and joined linearly.

    Args:
        x: float32 [R, C], finite; one row for a whole tensor.
        q: percentages [K], 0..100, or one number.

    Returns:
        float64 [R, K], or [R] for a number.

    Raises:
        ValueError: NaN or infinity in `x`, rows without an element, `q` outside 0..100.

    Example:
        >>> percentile(np.array([[3.0, 1.0, 2.0, 5.0]], np.float32), [0, 50, 90])
        array([[1. , 2.5, 4.4]])
    """
    share = np.atleast_1d(np.asarray(q, np.float64)) / 100
    if share.ndim > 1 or not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"q is {q!r}; percentages are a number or [K] numbers in 0..100")
    if np.ndim(x) != 2:
        raise ValueError(f"percentile: x has {np.ndim(x)} dimensions, expected 2; reshape it first")
    rows, cols = np.shape(x)
    place = share * max(cols - 1, 0)
    low = np.floor(place).astype(np.int64)
    ranks, where = np.unique(
        np.concatenate([low, np.minimum(low + 1, max(cols - 1, 0))]), return_inverse=True
    )
    k = kernels()
    found = np.empty((rows, len(ranks)), np.float32)
    k.ranks_row(x, ranks, found, np.empty(k.ranks_workspace(rows, cols), np.uint8))
    both = found.astype(np.float64)[:, where.ravel()]
    a, b, t = both[:, : len(low)], both[:, len(low) :], place - low
    step = b - a
    joined: F64 = np.where(t >= 0.5, b - step * (1 - t), a + step * t)  # as NumPy joins them
    return joined[:, 0] if np.ndim(q) == 0 else joined


def klclip(x: F32, bits: int, *, size: int = 2048) -> tuple[F32, F64]:
    """Return the magnitude at which to clip each row so that the codes keep its distribution.

    Of all clips that are edges of a histogram of magnitudes, the first of least Kullback-Leibler
    divergence of the clipped counts from their ``2**(bits - 1)`` levels. The first bin counts at
    most as much as the second: zeros are on every grid, and many of them (behind a ReLU, say) would
    hide what happens to the rest.

    Args:
        x: float32 [R, C], finite.
        bits: 2..8, of a symmetric grid.
        size: bins of the histogram of each row, at least ``2**(bits - 1)`` and at most 2**20. Far
            more bins than elements tell little of the distribution.

    Returns:
        (clip, divergence): float32 [R], float64 [R] in nats. A row of zeros has clip 0, rows
        without elements too; a row whose magnitudes are all below 1e-36 is not clipped.

    Raises:
        ValueError: NaN or infinity in `x`, bits or bins out of range.

    References:
        Migacz, "8-bit inference with TensorRT", GTC 2017; the first bin as in NVIDIA's
        pytorch-quantization.

    Example:
        >>> x = np.concatenate([np.linspace(-1, 1, 999), np.linspace(2, 20, 7)])
        >>> klclip(x[None].astype(np.float32), 4, size=512)[0]
        array([1.015625], dtype=float32)
    """
    if bits not in range(2, 9):
        raise ValueError(f"bits is {bits}; allowed are 2..8")
    size = _bins(size)
    k = kernels()
    rows = len(x)
    counts, top = np.empty((rows, size), np.uint32), np.empty(rows, np.float32)
    k.magnitudes_row(x, counts, top, np.empty(k.magnitudes_workspace(rows, size), np.uint8))
    np.minimum(counts[:, 0], counts[:, 1], out=counts[:, 0])
    best, least = np.empty(rows, np.uint32), np.empty(rows)
    work = np.empty(k.klclip_workspace(rows, size) // 8)
    k.klclip_row(counts, 2 ** (bits - 1), best, least, work)
    return (top.astype(np.float64) * (best / size)).astype(np.float32), least
