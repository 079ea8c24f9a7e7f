"""Keywords, defaults and edges of the NumPy functions, against NumPy formulas; no torch here."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cmibq import arrays
from tests.kernels.cases.base import finite
from tests.kernels.cases.codes import token_scale
from tests.kernels.cases.pack import stream
from tests.kernels.cases.qparams import grid_of_range


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return finite(rng, 9, 40)


@pytest.mark.parametrize("mode", range(8))
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_mode_of_a_grid(x: np.ndarray, bits: int, mode: int) -> None:
    scale, zero = arrays.qparams(
        x, bits, symmetric=bool(mode & 1), zero_in_range=bool(mode & 2), half_scale=bool(mode & 4)
    )
    want_scale, want_zero = grid_of_range(x.min(1), x.max(1), bits, mode)
    np.testing.assert_array_equal(scale, want_scale)
    np.testing.assert_array_equal(zero, want_zero)


def test_the_default_contains_zero_and_stores_half_scales(x: np.ndarray) -> None:
    scale, zero = arrays.qparams(x, 4)
    np.testing.assert_array_equal(scale, scale.astype(np.float16))
    codes = arrays.codes(np.zeros_like(x), scale, zero, bits=4)
    assert not arrays.decode(codes, scale, zero).any()


def test_a_round_trip_through_packed_codes(x: np.ndarray) -> None:
    for bits in range(1, 9):
        scale, zero = arrays.qparams(x, bits)
        codes = arrays.codes(x, scale, zero, bits=bits)
        packed = arrays.pack(codes, bits=bits)
        np.testing.assert_array_equal(packed, stream(codes, bits))
        back = arrays.decode(arrays.unpack(packed, bits=bits, cols=40), scale, zero)
        lo = 0 - zero.astype(np.float32)
        want = arrays.fakequant(x, scale, lo, lo + np.float32(2**bits - 1))
        np.testing.assert_array_equal(back, want)


def test_search_lowers_the_error_of_an_outlier(rng: np.random.Generator) -> None:
    x = np.append(rng.normal(size=255), 8.0).astype(np.float32)[None]
    full, best = (arrays.qparams_mse(x, 3, n_grid=n)[2] for n in (1, 20))
    assert best < 0.8 * full


def test_tokens(x: np.ndarray) -> None:
    codes, scale = arrays.codes_token(x)
    np.testing.assert_array_equal(scale, token_scale(x, 8)[:, 0])
    fake = arrays.fakequant_token(x, bits=8)
    np.testing.assert_array_equal(codes * scale[:, None], fake)


def test_reductions(x: np.ndarray) -> None:
    for axis in (0, 1):
        mn, mx = arrays.minmax(x, axis=axis)
        np.testing.assert_array_equal(mn, x.min(1 - axis))
        np.testing.assert_array_equal(mx, x.max(1 - axis))
        np.testing.assert_array_equal(arrays.absmax(x, axis=axis), np.abs(x).max(1 - axis))
        want = np.abs(x.astype(np.float64)).sum(1 - axis)
        np.testing.assert_allclose(arrays.abssum(x, axis=axis), want, rtol=1e-13)


def test_results_go_where_the_caller_says(x: np.ndarray) -> None:
    scale, zero = arrays.qparams(x, 4)
    codes = np.empty(x.shape, np.uint8)
    assert arrays.codes(x, scale, zero, bits=4, out=codes) is codes
    values = np.empty_like(x)
    assert arrays.decode(codes, scale, zero, out=values) is values
    want = arrays.fakequant_token(x, bits=8)
    assert arrays.fakequant_token(x, bits=8, out=x) is x
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: arrays.abssum(x, weight=np.ones(9)), "weight weighs rows, so it needs axis=1"),
        (lambda x: arrays.qparams(x, 1, symmetric=True), "bits is 1, a symmetric range needs 2..8"),
        (lambda x: arrays.qparams(x[:, :0].copy(), 4), r"x.shape\[1\] is 0"),
        (lambda x: arrays.qparams(x.T, 4), "x must be C-contiguous"),
        (lambda x: arrays.qparams_mse(x, 4, n_grid=0), "n_grid is 0, allowed are 1..10000"),
        (lambda x: arrays.fakequant_token(x, bits=1), "bits is 1, allowed are 2..16"),
        (lambda x: arrays.pack(np.full((1, 8), 9, np.uint8), bits=3), r"codes\[0\] is 9"),
    ],
)
def test_what_is_refused(x: np.ndarray, call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(x)


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys, numpy as np, cmibq.arrays as a; a.qparams(np.ones((1, 8), np.float32), 4); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
