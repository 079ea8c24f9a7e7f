"""The NumPy functions equal the torch ops bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmibq import arrays, ops
from cmibq.errors import ConfigError


def same(got: object, want: object) -> None:
    got, want = (v if isinstance(v, tuple) else (v,) for v in (got, want))
    for a, b in zip(got, want, strict=True):
        assert isinstance(a, np.ndarray)
        np.testing.assert_array_equal(a, b.numpy(), strict=True)


def first(v: object) -> object:
    """Return the codes of (codes, scale)."""
    return v[0] if isinstance(v, tuple) else v


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(7, 40)).astype(np.float32)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("zero_in_range", [False, True])
@pytest.mark.parametrize("half_scale", [False, True])
def test_grids(x: np.ndarray, symmetric: bool, zero_in_range: bool, half_scale: bool) -> None:
    mode = symmetric + 2 * zero_in_range + 4 * half_scale
    modes = {"symmetric": symmetric, "zero_in_range": zero_in_range, "half_scale": half_scale}
    same(arrays.qparams(x, 4, **modes), ops.qparams(torch.from_numpy(x), 4, mode))
    same(arrays.qparams_mse(x, 3, **modes), ops.qparams_mse(torch.from_numpy(x), 3, mode))


def test_codes(x: np.ndarray) -> None:
    scale, zero = arrays.qparams(x, 5)
    grid = (torch.from_numpy(scale), torch.from_numpy(zero))
    codes = arrays.codes(x, scale, zero, bits=5)
    same(codes, ops.codes(torch.from_numpy(x), *grid, bits=5))
    same(arrays.decode(codes, scale, zero), ops.decode(torch.from_numpy(codes), *grid))
    packed = arrays.pack(codes, bits=5)
    same(packed, ops.pack(torch.from_numpy(codes), bits=5))
    same(arrays.unpack(packed, bits=5, cols=40), torch.from_numpy(codes))


def test_tokens(x: np.ndarray) -> None:
    same(arrays.codes_token(x), ops.codes_token(torch.from_numpy(x)))
    same(arrays.fakequant_token(x, bits=6), ops.fakequant_token(torch.from_numpy(x), bits=6))


@pytest.mark.parametrize("axis", [0, 1])
def test_reductions(x: np.ndarray, axis: int) -> None:
    same(arrays.minmax(x, axis=axis), ops.minmax(torch.from_numpy(x), axis=axis))
    same(arrays.absmax(x, axis=axis), ops.absmax(torch.from_numpy(x), axis=axis))
    weight = np.linspace(0, 1, 7) if axis else None
    given = None if weight is None else torch.from_numpy(weight)
    same(
        arrays.abssum(x, weight=weight, axis=axis),
        ops.abssum(torch.from_numpy(x), weight=given, axis=axis),
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_attention(rng: np.random.Generator, precision: str) -> None:
    xq, xk = (rng.normal(size=(2, n, 16)).astype(np.float32) for n in (5, 9))
    w = [rng.normal(size=(16, 16)).astype(np.float32) for _ in range(4)]
    mask = rng.random((2, 9)) < 0.3
    got = arrays.attention(xq, xk, *w, heads=2, key_mask=mask, precision=precision)
    given = {"key_mask": torch.from_numpy(mask), "precision": precision}
    same(got, ops.attention(*map(torch.from_numpy, (xq, xk, *w)), heads=2, **given).out)
    with pytest.raises(ConfigError, match="precision is 'low'"):
        arrays.attention(xq, xk, *w, heads=2, precision="low")


@pytest.mark.parametrize("axis", [-2, -1, 2, 7])
@pytest.mark.parametrize("name", ["minmax", "absmax", "abssum", "fakequant"])
def test_an_axis_that_is_neither_rows_nor_columns_is_refused(name: str, axis: int) -> None:
    ones = [np.ones(3, np.float32)] * 3 if name == "fakequant" else []
    square = [np.eye(3, dtype=np.float32), *ones]
    with pytest.raises(ConfigError, match=f"axis is {axis}; allowed are 0"):
        getattr(arrays, name)(*square, axis=axis)
    with pytest.raises(ConfigError, match=f"axis is {axis}; allowed are 0"):
        getattr(ops, name)(*map(torch.from_numpy, square), axis=axis)


@pytest.mark.parametrize("name", ["minmax", "absmax", "abssum", "pack", "qgemm"])
def test_a_vector_is_refused_by_name(name: str) -> None:
    rest = [np.zeros((2, 4), np.uint8), np.ones((2, 1), np.float16)] if name == "qgemm" else []
    x = np.ones(8, np.uint8 if name == "pack" else np.float32)
    more = {"bits": 4} if name in ("pack", "qgemm") else {"axis": 1}
    with pytest.raises(ValueError, match="has 1 dimensions, expected 2"):
        getattr(arrays, name)(x, *rest, **more)
    with pytest.raises(ValueError, match="has 1 dimensions, expected 2"):
        getattr(ops, name)(*map(torch.from_numpy, [x, *rest]), **more)


def test_results_go_where_the_caller_says(x: np.ndarray) -> None:
    scale, zero = arrays.qparams(x, 5)
    codes = arrays.codes(x, scale, zero, bits=5)
    packed = arrays.pack(codes, bits=5)
    for name, args, more in (
        ("codes", (x, scale, zero), {"bits": 5}),
        ("decode", (codes, scale, zero), {}),
        ("codes_token", (x,), {}),
        ("fakequant_token", (x,), {"bits": 4}),
        ("pack", (codes,), {"bits": 5}),
        ("unpack", (packed,), {"bits": 5, "cols": 40}),
    ):
        want = first(getattr(arrays, name)(*args, **more))
        into = np.full_like(want, 7)
        assert first(getattr(arrays, name)(*args, **more, out=into)) is into, name
        np.testing.assert_array_equal(into, want, err_msg=name)
        place = torch.full(want.shape, 7, dtype=torch.from_numpy(want).dtype)
        got = first(getattr(ops, name)(*map(torch.from_numpy, args), **more, out=place))
        assert got is place, name
        same(want, place)


def test_codes_of_a_parameter_go_where_the_caller_says(x: np.ndarray) -> None:
    weight = torch.nn.Parameter(torch.from_numpy(x))
    scale, zero = ops.qparams(weight, 5, 2)
    out = torch.empty(x.shape, dtype=torch.uint8)
    ops.codes(weight, scale, zero, bits=5, out=out)
    assert not scale.requires_grad
    with pytest.raises(ConfigError, match="out is given where a gradient is recorded"):
        ops.fakequant_token(weight, bits=4, out=torch.empty(x.shape))
