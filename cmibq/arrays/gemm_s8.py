"""Exact products of int8 matrices, requantised where wanted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.products import multiply_s8

__all__ = ["gemm_s8"]

S8 = NDArray[np.int8]
S32 = NDArray[np.int32]


def gemm_s8(
    a: S8,
    b: S8,
    *,
    bias: S32 | None = None,
    multiplier: S32 | None = None,
    shift: S32 | None = None,
    zero_point: int = 0,
    lo: int = -128,
    hi: int = 127,
    out: S8 | S32 | None = None,
) -> S8 | S32:
    """Multiply int8 matrices exactly: ``a @ b.T``, as int32 or requantised to int8.

    With `multiplier` and `shift` (the dyadic numbers ``multiplier / 2**shift`` of I-BERT, one per
    output) the result is ``clamp(rint((a @ b.T + bias) * multiplier / 2**shift) + zero_point, lo,
    hi)``, computed in integers, ties to even. Without them it is ``a @ b.T + bias`` in int32. The
    same bits on every ISA and thread count.

    Args:
        a: int8 [M, K], activations; rows may be strided.
        b: int8 [N, K], weights as a linear layer keeps them; rows may be strided.
        bias: int32 [N]. For int32 results its magnitude is at most ``2**31 - 1 - 16384 * K``, so
            that no sum overflows.
        multiplier: int32 [N].
        shift: int32 [N], 0..62.
        zero_point: -128..127, added after rounding.
        lo: least code, -128..127.
        hi: largest code, at least `lo`.
        out: int32 or int8 [M, N], C-contiguous, to write to.

    Returns:
        [M, N], int8 with `multiplier`, otherwise int32: `out` or a new array.

    Raises:
        ValueError: a shape or value does not fit, or K is above 131071, where int32 sums could
            overflow.
        TypeError: an array has another dtype.

    Example:
        >>> x = np.array([[100, -3]], np.int8)
        >>> gemm_s8(x, x)
        array([[10009]], dtype=int32)
        >>> gemm_s8(x, x, multiplier=np.array([5], np.int32), shift=np.array([10], np.int32))
        array([[49]], dtype=int8)
    """
    return multiply_s8(a, b, bias, multiplier, shift, zero_point, lo, hi, out)
