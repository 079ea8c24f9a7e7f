"""Grids (scale and zero point) of the rows of a matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.runtime import kernels

__all__ = ["qparams", "qparams_mse"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def _mode(symmetric: bool, zero_in_range: bool, half_scale: bool) -> int:
    return symmetric * 1 | zero_in_range * 2 | half_scale * 4  # csrc/core/grid.h


def qparams(
    x: F32,
    bits: int,
    *,
    symmetric: bool = False,
    zero_in_range: bool = True,
    half_scale: bool = True,
) -> tuple[F32, U8]:
    """Return the grid of every row from its minimum and maximum.

    Args:
        x: float32 [R, C]; reshape a weight [N, K] to [N * K // group, group] for groups.
        bits: 1..8; a symmetric grid needs 2.
        symmetric: signed around 0, zero point ``2**(bits-1)``.
        zero_in_range: widen an asymmetric range until it contains 0. Published AWQ and MBQ do not.
        half_scale: round the scale to float16, as packages store it. Published code does not.

    Returns:
        (scale, zero): float32 [R], uint8 [R]; ``value = (code - zero) * scale``, codes
        ``0 .. 2**bits - 1``.

    Raises:
        ValueError: bits out of range, a row with NaN, a scale that overflows.

    Example:
        >>> qparams(np.array([[-1.0, 0.5, 2.0]], np.float32), 2)
        (array([1.], dtype=float32), array([1], dtype=uint8))
    """
    scale, zero = np.empty(len(x), np.float32), np.empty(len(x), np.uint8)
    mode = _mode(symmetric, zero_in_range, half_scale)
    kernels().qparams_row(x, bits, mode, scale, zero)
    return scale, zero


def qparams_mse(
    x: F32,
    bits: int,
    *,
    n_grid: int = 20,
    max_shrink: float = 0.5,
    symmetric: bool = False,
    zero_in_range: bool = True,
    half_scale: bool = True,
) -> tuple[F32, U8, NDArray[np.float64]]:
    """Return the grid of every row with the least squared error over shrunken ranges.

    Args:
        x: as in `qparams`.
        bits: as in `qparams`.
        n_grid: ranges tried per row.
        max_shrink: range i is shrunk by ``1 - i * max_shrink / n_grid``; 0..1.
        symmetric: as in `qparams`.
        zero_in_range: as in `qparams`.
        half_scale: as in `qparams`.

    Returns:
        (scale, zero, err): as `qparams`, and the squared error, float64 [R]. First wins ties.

    Raises:
        ValueError: as `qparams`.

    Example:
        >>> x = np.array([[0.0, 1.0, 2.0, 3.0] * 8 + [6.0]], np.float32)
        >>> qparams_mse(x, 2, n_grid=2, max_shrink=1.0)
        (array([1.], dtype=float32), array([0], dtype=uint8), array([9.]))
    """
    scale, zero, err = np.empty(len(x), np.float32), np.empty(len(x), np.uint8), np.empty(len(x))
    mode = _mode(symmetric, zero_in_range, half_scale)
    kernels().qparams_mse_row(x, bits, mode, n_grid, max_shrink, scale, zero, err)
    return scale, zero, err
