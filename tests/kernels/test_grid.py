"""csrc/core/half.h and grid.h, seen through qparams: float16 rounding and extremes."""

from __future__ import annotations

import numpy as np
import pytest

from cmibq.runtime import native

C = native()
F32 = np.float32


def scales(x: np.ndarray, bits: int, mode: int) -> np.ndarray:
    scale = np.empty(len(x), F32)
    C.Kernels("scalar").qparams_row(x[:, None], bits, mode, scale, np.empty(len(x), np.uint8))
    return scale


def test_scales_round_to_float16_as_numpy_does() -> None:
    """Every finite half, every midpoint of two neighbours, and the floats next to those."""
    half = np.arange(0x0001, 0x7C00, dtype=np.uint16).view(np.float16).astype(F32)
    middle = (half[1:] + half[:-1]) / 2
    near = [np.nextafter(middle, F32(0)), middle, np.nextafter(middle, F32(np.inf))]
    wanted = np.concatenate([half, *near])
    # Two-bit symmetric grids divide by 1; values below 1e-5 need the 255 of eight bits.
    large = wanted[wanted >= 1e-5]
    np.testing.assert_array_equal(scales(large, 2, 1 | 4), large.astype(np.float16))
    small = wanted[wanted < 2e-5] * F32(255)
    exact = np.maximum(small, F32(1e-5)) / F32(255)
    rounded = np.maximum(exact.astype(np.float16), np.float16(2.0**-24))
    np.testing.assert_array_equal(scales(small, 8, 2 | 4), rounded)


def test_the_largest_float16_scale() -> None:
    below = np.nextafter(F32(65520), F32(0))
    assert scales(np.array([below]), 2, 1 | 4) == 65504
    with pytest.raises(ValueError, match=r"scale\[0\] is inf; every scale must be finite"):
        scales(np.array([65520], F32), 2, 1 | 4)


def test_a_range_wider_than_float32_is_refused() -> None:
    x = np.array([[-3e38, 3e38]], F32)
    args = (np.empty(1, F32), np.empty(1, np.uint8))
    with pytest.raises(ValueError, match=r"scale\[0\] is inf"):
        C.Kernels().qparams_row(x, 4, 0, *args)
    C.Kernels().qparams_row(x, 4, 1, *args)  # symmetric: half that range
    assert args[0] == F32(3e38) / F32(7)


def test_a_distant_constant_saturates_its_zero_point() -> None:
    """The published range [w, w] puts zero out of reach; the library's range reaches from 0."""
    for value, zero in ((1e30, 0), (-1e30, 15)):
        got = np.empty(1, np.uint8)
        C.Kernels().qparams_row(np.full((1, 8), value, F32), 4, 0, np.empty(1, F32), got)
        assert got == zero
