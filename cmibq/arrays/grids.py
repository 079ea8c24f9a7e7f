"""Fake quantisation on other grids: powers of two, power-of-two steps, torch's own arithmetic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import check_axis, refuse_step_size
from cmibq.memory import empty
from cmibq.runtime import kernels

__all__ = ["fakequant_log2", "fakequant_torch_compat", "power_of_two"]

F32 = NDArray[np.float32]
SQRT2_FRACTION = 0x3504F4
"""Fraction bits of the first float32 above the square root of 2."""


def power_of_two(scale: F32, *, up: bool = False) -> F32:
    """Return step sizes rounded to powers of two, so that dividing by them is a shift.

    Fake quantisation, codes and decoding then are exact in every step but the one rounding.

    Args:
        scale: float32, > 0; any shape.
        up: to the next power that is not smaller, so that no value saturates which did not;
            otherwise to the nearest in the logarithm.

    Returns:
        float32 of the shape of `scale`, at least 2**-126. By the exponent bits, no logarithm.

    Raises:
        ValueError: a scale that is not finite and > 0, or whose power would be 2**128.

    References:
        Jain et al., "Trained Quantization Thresholds", MLSys 2020, section 3.1 (`up`).

    Example:
        >>> power_of_two(np.array([0.7, 0.71, 3.0, 4.0], np.float32))
        array([0.5, 1. , 4. , 4. ], dtype=float32)
        >>> power_of_two(np.array([0.3, 0.5], np.float32), up=True)
        array([0.5, 0.5], dtype=float32)
    """
    carry = 0x7FFFFF if up else 0x800000 - SQRT2_FRACTION
    scale = np.ascontiguousarray(scale, np.float32)
    good = (scale > 0) & (scale <= float(2**127))
    if not good.all():
        at = int(np.argmin(good))
        refuse_step_size(at, float(scale.ravel()[at]))
    bits = scale.view(np.int32) + np.int32(carry)
    power: F32 = np.maximum(bits & np.int32(0x7F800000), np.int32(0x00800000)).view(np.float32)
    return power


def fakequant_log2(
    x: F32, scale: F32, lo: F32, hi: F32, *, axis: int = 0, out: F32 | None = None
) -> F32:
    """Round `x` to ``sign(x) * scale * 2**e``, e the integer in lo..hi nearest to log2(|x|/scale).

    Args:
        x: float32 [R, C].
        scale: float32, one per row (axis 0: [R]) or per column (axis 1: [C]); > 0.
        lo: smallest exponent, of the shape of scale; ``1 - 2**bits`` for codes of `bits` bits.
        hi: largest exponent, usually 0.
        axis: 0 = parameters per row, 1 = per column.
        out: float32 [R, C] to write to; may be `x` itself.

    Returns:
        float32 [R, C]: `out` or a new array. Zero stays zero, NaN stays NaN, infinity saturates.
        Half-way is where |x| / scale is an odd power of sqrt(2), which no float32 is: no ties.

    Raises:
        ValueError: a shape does not fit, a scale is not finite and > 0, a bound is no integer in
            -126..127.

    References:
        Miyashita et al., "Convolutional Neural Networks using Logarithmic Data Representation",
        2016, eq. 4; Lin et al., "FQ-ViT", IJCAI 2022, eq. 10.

    Example:
        >>> x = np.array([[0.9, -0.3, 0.01, 0.0, 5.0]], np.float32)
        >>> fakequant_log2(x, np.float32([1]), np.float32([-3]), np.float32([0]))
        array([[ 1.   , -0.25 ,  0.125,  0.   ,  1.   ]], dtype=float32)
    """
    check_axis(axis)
    out = empty(x.shape) if out is None else out
    k = kernels()
    (k.fakequant_log2_col if axis else k.fakequant_log2_row)(x, scale, lo, hi, out)
    return out


def fakequant_torch_compat(
    x: F32, scale: F32, lo: F32, hi: F32, *, axis: int = 0, out: F32 | None = None
) -> F32:
    """Round as `fakequant`, but multiply by ``1 / scale`` as ``torch.fake_quantize_*`` does.

    A value beside a half-way point may go the other way than under the division.

    Args:
        x: as in `fakequant`.
        scale: as in `fakequant`.
        lo: as in `fakequant`.
        hi: as in `fakequant`.
        axis: as in `fakequant`.
        out: as in `fakequant`.

    Returns:
        float32 [R, C]: `out` or a new array; for finite x the bits of torch.

    Raises:
        ValueError: as `fakequant`.

    Example:
        >>> x, scale = np.float32([[0.15]]), np.float32([0.1])
        >>> fakequant_torch_compat(x, scale, np.float32([-8]), np.float32([7]))
        array([[0.2]], dtype=float32)
    """
    check_axis(axis)
    out = empty(x.shape) if out is None else out
    k = kernels()
    (k.fakequant_compat_col if axis else k.fakequant_compat_row)(x, scale, lo, hi, out)
    return out
