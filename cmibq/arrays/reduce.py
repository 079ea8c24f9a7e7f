"""Ranges and magnitudes of the rows or columns of a matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import check_axis
from cmibq.runtime import kernels

__all__ = ["absmax", "abssum", "minmax"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def _count(x: F32, axis: int) -> int:
    """Return how many results there are; the kernel names an `x` that is no matrix."""
    return x.shape[-axis] if x.ndim == 2 else 0


def minmax(x: F32, *, axis: int = 0, out: tuple[F32, F32] | None = None) -> tuple[F32, F32]:
    """Return the smallest and the largest element of every row or column.

    Args:
        x: float32 [R, C].
        axis: 0 = per row, 1 = per column.
        out: two float32 [R] or [C] to write to.

    Returns:
        (mn, mx): float32 [R] or [C]. One NaN makes both NaN; never -0.

    Raises:
        ValueError: rows or columns without an element.

    Example:
        >>> minmax(np.array([[1.0, -2.0], [3.0, 4.0]], np.float32))
        (array([-2.,  3.], dtype=float32), array([1., 4.], dtype=float32))
    """
    check_axis(axis)
    mn, mx = (np.empty(_count(x, axis), np.float32) for _ in range(2)) if out is None else out
    k = kernels()
    (k.minmax_col if axis else k.minmax_row)(x, mn, mx)
    return mn, mx


def absmax(x: F32, *, axis: int = 0, out: F32 | None = None) -> F32:
    """Return the largest magnitude of every row or column; 0 where there is no element.

    Args:
        x: float32 [R, C].
        axis: 0 = per row, 1 = per column.
        out: float32 [R] or [C] to write to.

    Returns:
        float32 [R] or [C]; NaN where a NaN is met.

    Example:
        >>> absmax(np.array([[1.0, -2.0], [3.0, 4.0]], np.float32), axis=1)
        array([3., 4.], dtype=float32)
    """
    check_axis(axis)
    out = np.empty(_count(x, axis), np.float32) if out is None else out
    k = kernels()
    (k.absmax_col if axis else k.absmax_row)(x, out)
    return out


def abssum(x: F32, *, weight: F64 | None = None, axis: int = 0, out: F64 | None = None) -> F64:
    """Return the sum of magnitudes of every row, or the weighted sum of every column, in double.

    Args:
        x: float32 [R, C].
        weight: float64 [R], only with axis 1; a row of weight 0 is not read, so it may hold NaN.
        axis: 0 = per row, 1 = per column.
        out: float64 [R] or [C] to write to.

    Returns:
        float64 [R] or [C].

    Raises:
        ValueError: a weight with axis 0, or of another size.

    Example:
        >>> x = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)
        >>> abssum(x, weight=np.array([1.0, 0.5]), axis=1)
        array([2.5, 4. ])
    """
    check_axis(axis)
    if weight is not None and axis == 0:
        raise ValueError("abssum: weight weighs rows, so it needs axis=1; axis is 0")
    out = np.empty(_count(x, axis), np.float64) if out is None else out
    if axis:
        kernels().abssum_col(x, weight, out)
    else:
        kernels().abssum_row(x, out)
    return out
