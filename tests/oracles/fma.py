"""Fused multiply-add of float32 numbers, rounded once, in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def fma(a: F32, b: F32, c: F32) -> F32:
    """Return ``a * b + c`` rounded once, for float32 operands.

    The product is exact in float64; the sum is rounded to odd there, after which rounding to
    float32 gives what rounding the exact sum would (Boldo and Melquiond, 2008).
    """
    p, c64 = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    s = p + c64
    rest = (p - (s - (s - p))) + (c64 - (s - p))  # what the sum lost, exactly
    toward = np.where(rest > 0, np.inf, -np.inf)
    even = (np.ascontiguousarray(s).view(np.int64) & 1) == 0
    odd = np.where((rest != 0) & even & np.isfinite(s), np.nextafter(s, toward), s)
    return odd.astype(np.float32)
