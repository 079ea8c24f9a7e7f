"""Bits of channels: the nearest real bits with a given mean, and their rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.runtime import kernels

__all__ = ["project_bits", "project_bits_backward", "round_bits"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def project_bits(
    x: F32,
    target: float,
    lo: float,
    hi: float,
    *,
    weight: F32 | None = None,
    out: F32 | None = None,
) -> F32:
    """Return the bits in ``[lo, hi]`` with mean `target` that are nearest to `x`, row by row.

    They are ``min(hi, max(lo, x + tau))`` with one shift ``tau`` per row (water-filling).

    Args:
        x: float32 [R, C], wished bits or importance logits.
        target: weighted mean of every row of the result, in ``[lo, hi]``.
        lo: fewest bits, a float32 number.
        hi: most bits, a float32 number.
        weight: float32 [C], > 0: what a bit of each channel costs; None = 1.
        out: float32 [R, C] to write to; may be `x` itself.

    Returns:
        float32 [R, C]: `out` or a new array. A row with NaN or infinity becomes NaN.

    Raises:
        ValueError: `target` outside ``[lo, hi]``, a weight that is not finite and > 0.

    References:
        Cover and Thomas, "Elements of Information Theory", section 13.3.3.

    Example:
        >>> project_bits(np.array([[0.0, 1.0, 9.0]], np.float32), 4.0, 2.0, 8.0)
        array([[2., 2., 8.]], dtype=float32)
    """
    out = np.empty_like(x) if out is None else out
    kernels().project_row(x, weight, lo, hi, target, out)
    return out


def project_bits_backward(
    g: F32, b: F32, lo: float, hi: float, *, weight: F32 | None = None, out: F32 | None = None
) -> F32:
    """Return the gradient of `project_bits`: `g` less its mean over the channels off the ends.

    Args:
        g: float32 [R, C], gradient of the loss with respect to the result.
        b: float32 [R, C], the result of `project_bits`.
        lo: as in `project_bits`.
        hi: as in `project_bits`.
        weight: as in `project_bits`.
        out: float32 [R, C] to write to; may be `g` itself.

    Returns:
        float32 [R, C]: ``g - weight * sum(g) / sum(weight)``, sums over ``lo < b < hi``, there; 0
        elsewhere.

    Example:
        >>> b = np.array([[2.0, 3.0, 4.0, 8.0]], np.float32)
        >>> project_bits_backward(np.array([[5.0, 1.0, 2.0, 5.0]], np.float32), b, 2.0, 8.0)
        array([[ 0. , -0.5,  0.5,  0. ]], dtype=float32)
    """
    out = np.empty_like(g) if out is None else out
    kernels().project_bwd_row(g, b, weight, lo, hi, out)
    return out


def round_bits(b: F32, lo: int, hi: int, total: int, *, out: U8 | None = None) -> U8:
    """Round bits to integers whose sum is exactly `total`, row by row.

    Every channel keeps the whole part; the largest fractions get one more, of equal fractions the
    lowest index first. These are the integers nearest to `b` with that sum.

    Args:
        b: float32 [R, C], such as `project_bits` returns; finite.
        lo: fewest bits, 0..255.
        hi: most bits, lo..255.
        total: sum of every row, ``lo * C .. hi * C``.
        out: uint8 [R, C] to write to.

    Returns:
        uint8 [R, C]: `out` or a new array.

    Raises:
        ValueError: a total that cannot be met, NaN or infinity in `b`.

    Example:
        >>> round_bits(np.array([[2.5, 3.5, 6.0]], np.float32), 2, 8, 12)
        array([[3, 3, 6]], dtype=uint8)
    """
    out = np.empty(b.shape, np.uint8) if out is None else out
    kernels().round_bits_row(b, lo, hi, total, out)
    return out
