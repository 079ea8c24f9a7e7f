"""Ranges of weight groups that give the least output error when the weight is rounded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmibq.arrays.fakequant import fakequant
from cmibq.arrays.moments import check_moments
from cmibq.errors import ConfigError
from cmibq.products import multiply
from cmibq.runtime import kernels
from cmibq.strips import Bits, check_bits, runs

__all__ = ["Clipped", "clip_search"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
_SYMMETRIC, _ZERO_IN_RANGE, _HALF_SCALE = 1, 2, 4  # csrc/core/grid.h
_VALUES_AT_ONCE = 1 << 22
_ENDS_UP_TO = 4  # bits: with more levels it does not pay to move the ends apart


class Clipped(NamedTuple):
    """Grids of the groups of a weight, row by row: ``value = (code - zero) * scale``."""

    scale: F32
    """float32 [N * G], numbers that float16 holds."""
    zero: U8
    """uint8 [N * G]."""
    error: F64
    """float64 [N * G], ``d H_gg d^T`` of the group when it is rounded to the nearest."""


class _Best:
    """The best grids so far of the rows of a matrix [groups * N, size], and how they are judged."""

    def __init__(self, m: F32, h: F32 | None, bits: int, mode: int) -> None:
        self.m, self.h, self.bits, self.mode = m, h, bits, mode
        self.low, self.high = m.min(1), m.max(1)
        self.low_factor, self.high_factor = np.ones((2, len(m)), np.float32)
        self.scale, self.zero = np.ones(len(m), np.float32), np.zeros(len(m), np.uint8)
        self.error = np.full(len(m), np.inf)

    def judge(self, low_factor: F32, high_factor: F32) -> None:
        """Try the ranges of these factors [rows]; keep those that are better."""
        ends = np.stack([self.low * low_factor, self.high * high_factor], 1)
        scale, zero = np.empty_like(self.scale), np.empty_like(self.zero)
        kernels().qparams_row(ends, self.bits, self.mode, scale, zero)
        lo = -zero.astype(np.float32) + 0.0
        d = fakequant(self.m, scale, lo, lo + np.float32(2**self.bits - 1))
        d -= self.m
        e = d
        if self.h is not None:
            shape = (len(self.h), -1, self.m.shape[1])
            e = multiply(d.reshape(shape), self.h, 0, 1.0, None, 0, None, None).reshape(d.shape)
        error = (e * d).sum(1, dtype=np.float64)
        at = error < self.error
        self.scale[at], self.zero[at], self.error[at] = scale[at], zero[at], error[at]
        self.low_factor[at], self.high_factor[at] = low_factor[at], high_factor[at]

    def search(self, n_grid: int, max_shrink: float) -> None:
        """Try shrunken ranges; then, on few levels, other factors for each end."""
        grid = 1 - np.arange(n_grid, dtype=np.float32) * np.float32(max_shrink / n_grid)
        for f in grid:
            self.judge(*np.full((2, len(self.m)), f))
        fine = np.float32(max_shrink / n_grid / 2)
        for step in (-fine, fine):
            old = self.low_factor.copy(), self.high_factor.copy()
            self.judge(*(np.clip(f + step, 0, 1) for f in old))
        if self.mode & _SYMMETRIC or self.bits > _ENDS_UP_TO:
            return
        for low in (False, True):
            old = self.low_factor.copy(), self.high_factor.copy()
            for f in np.broadcast_to(grid[:, None], (n_grid, len(self.m))):
                self.judge(f if low else old[0], old[1] if low else f)


def _search(
    w: F32, h: F32 | None, bits: int, size: int, mode: int, n_grid: int, max_shrink: float
) -> Clipped:
    """Search the groups of a weight with one width, some groups of inputs at a time."""
    outs, cols = w.shape
    groups = cols // size
    scale, zero = np.empty((outs, groups), np.float32), np.empty((outs, groups), np.uint8)
    error = np.empty((outs, groups))
    step = max(_VALUES_AT_ONCE // max(outs * size, 1), 1)
    for at in range(0, groups, step):
        end = min(at + step, groups)
        part = w[:, at * size : end * size].reshape(outs, end - at, size).swapaxes(0, 1)
        blocks = None
        if h is not None:
            sides = (slice(g * size, (g + 1) * size) for g in range(at, end))
            blocks = np.stack([h[side, side] for side in sides])
        best = _Best(np.ascontiguousarray(part).reshape(-1, size), blocks, bits, mode)
        best.search(n_grid, max_shrink)
        for to, found in ((scale, best.scale), (zero, best.zero), (error, best.error)):
            to[:, at:end] = found.reshape(end - at, outs).T
    return Clipped(scale.reshape(-1), zero.reshape(-1), error.reshape(-1))


def clip_search(
    w: F32,
    h: F32 | None = None,
    *,
    bits: Bits,
    group_size: int = -1,
    symmetric: bool = False,
    n_grid: int = 20,
    max_shrink: float = 0.7,
) -> Clipped:
    """Find, for every group of weights, the range whose grid rounds it with the least output error.

    Tried are `n_grid` common factors of both ends of the range, then two steps half as wide around
    the best one, then, for asymmetric grids of 4 bits or fewer, factors of each end alone. The full
    range is among them, so a group is never worse than on its full range. Ranges contain 0, and
    scales are float16 numbers.

    Args:
        w: float32 [N, K], finite.
        h: float32 [K, K] from `second_moments`: the error of a group is ``d H_gg d^T``, the exact
            error of the output as long as the other groups are not rounded. None: ``sum d**2``.
        bits: 1..8, or one width for every 16 outputs.
        group_size: inputs that share a grid, a divisor of K; 0 or less: whole rows.
        symmetric: zero point ``2**(bits - 1)``; needs 2 bits.
        n_grid: common factors tried, at least 1.
        max_shrink: factor i is ``1 - i * max_shrink / n_grid``; 0..1.

    Returns:
        `Clipped`.

    Raises:
        ConfigError: an option is out of range, `h` does not fit.
        ValueError: NaN in `w`, or a scale that float16 cannot hold.

    References:
        Lin et al., "AWQ", MLSys 2024, published code (``auto_clip``), which sums the error of 512
        tokens instead.

    Example:
        >>> w = np.array([[0, 1, 2, 3, 0, 1, 2, 6]], np.float32)
        >>> h = np.diag(np.float32([1, 1, 1, 1, 1, 1, 1, 0.01]))
        >>> clip_search(w, h, bits=2, max_shrink=1.0).scale.tolist()  # input 7 hardly matters
        [1.0]
    """
    if w.ndim != 2:
        raise ConfigError(f"w is {list(w.shape)}; give a matrix [N, K]")
    size = group_size if group_size > 0 else max(w.shape[1], 1)
    if w.shape[1] % size:
        raise ConfigError(f"group_size is {group_size}; it must divide {w.shape[1]} inputs")
    if n_grid < 1 or not 0 <= max_shrink <= 1:
        raise ConfigError(f"n_grid is {n_grid} and max_shrink {max_shrink}; allowed: >= 1, 0..1")
    check_bits(bits, len(w), least=2 if symmetric else 1)
    if h is not None:
        check_moments(w, h)
    mode = _HALF_SCALE | (_SYMMETRIC if symmetric else _ZERO_IN_RANGE)
    parts = [
        _search(w[start:stop], h, width, size, mode, n_grid, max_shrink)
        for start, stop, width in runs(bits, len(w))
    ]
    return Clipped(*(np.concatenate(some) for some in zip(*parts, strict=True)))
