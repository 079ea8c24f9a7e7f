"""Fake quantisation of matrices: round to an affine grid and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import check_axis
from cmibq.memory import empty
from cmibq.runtime import kernels

__all__ = ["fakequant", "fakequant_backward"]

F32 = NDArray[np.float32]


def fakequant(
    x: F32, scale: F32, lo: F32, hi: F32, *, axis: int = 0, out: F32 | None = None
) -> F32:
    """Round `x` to the grid ``scale * {lo, ..., hi}``, half to even, saturating.

    Args:
        x: float32 [R, C].
        scale: float32, one step size per row (axis 0: [R]) or per column (axis 1: [C]); > 0.
        lo: smallest integer level per row or column, ``qmin - zero_point``; same shape as scale.
        hi: largest integer level, ``qmax - zero_point``; levels may differ, so bits may vary.
        axis: 0 = parameters per row, 1 = per column.
        out: float32 [R, C] to write to; may be `x` itself.

    Returns:
        float32 [R, C]: `out` or a new array. NaN stays NaN, -0 becomes +0.

    Raises:
        ValueError: a shape does not fit, a scale is not finite and > 0, a bound is no integer.
        TypeError: an array is not native float32.

    Example:
        >>> x = np.array([[0.26, -1.0, 9.0]], np.float32)
        >>> one = np.ones(1, np.float32)
        >>> fakequant(x, one / 2, -2 * one, 1 * one)
        array([[ 0.5, -1. ,  0.5]], dtype=float32)
    """
    check_axis(axis)
    out = empty(x.shape) if out is None else out
    call = kernels().fakequant_col if axis else kernels().fakequant_row
    call(x, scale, lo, hi, out)
    return out


def fakequant_backward(
    g: F32, x: F32, scale: F32, lo: F32, hi: F32, *, axis: int = 0, out: F32 | None = None
) -> tuple[F32, NDArray[np.float64]]:
    """Return the straight-through gradient of `fakequant` and its step-size gradient.

    Args:
        g: float32 [R, C], gradient of the loss with respect to the output.
        x: float32 [R, C], the input of `fakequant`.
        scale: as in `fakequant`.
        lo: as in `fakequant`.
        hi: as in `fakequant`.
        axis: as in `fakequant`.
        out: float32 [R, C] to write gx to; may be `g` itself.

    Returns:
        (gx, gscale): gx float32 [R, C] is `g` where ``lo <= x / scale <= hi`` and 0 elsewhere;
        gscale float64 [R] or [C] sums ``g * (rint(x / scale) - x / scale)`` inside the range and
        ``g * lo`` or ``g * hi`` outside.

    References:
        Esser et al., "Learned Step Size Quantization", ICLR 2020, eq. 3 (without the gradient
        factor of its section 2.2).

    Example:
        >>> one = np.ones(1, np.float32)
        >>> x = np.array([[0.25, 9.0]], np.float32)
        >>> fakequant_backward(np.ones_like(x), x, one, -2 * one, one)
        (array([[1., 0.]], dtype=float32), array([0.75]))
    """
    check_axis(axis)
    k = kernels()
    gx = empty(x.shape) if out is None else out
    gscale = np.empty_like(scale, dtype=np.float64)
    if axis:
        work = empty((k.fakequant_bwd_blocks(*x.shape), scale.size), np.float64)
        k.fakequant_bwd_col(x, g, scale, lo, hi, gx, gscale, work)
    else:
        work = np.empty(k.fakequant_bwd_row_workspace(*x.shape))
        k.fakequant_bwd_row(x, g, scale, lo, hi, gx, gscale, work)
    return gx, gscale
