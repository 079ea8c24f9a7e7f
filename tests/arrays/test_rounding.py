"""Second moments, clip search and GPTQ against plain float64 code and numbers worked by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmibq.arrays import clip_search, decode, gptq, output_error, qparams, second_moments
from cmibq.arrays.cholesky import cholesky_, damped_factor
from cmibq.errors import ConfigError, ModelError
from cmibq.ops.library import torch_threads

F64 = NDArray[np.float64]


def toy(
    seed: int, outs: int = 24, cols: int = 96, tokens: int = 200
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a weight and inputs that are correlated, some of them large."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(cols, cols)) * rng.exponential(size=cols)
    x = rng.normal(size=(tokens, cols)) @ mix / cols**0.5
    x[:, :: cols // 4] *= 8
    w = rng.standard_t(4, size=(outs, cols)) / 8
    return w.astype(np.float32), x.astype(np.float32)


def value(codes: NDArray[np.uint8], scale: NDArray[np.float32], zero: NDArray[np.uint8]) -> F64:
    rows = codes.reshape(len(scale), -1)
    return decode(np.ascontiguousarray(rows), scale, zero).reshape(codes.shape).astype(np.float64)


def error(w: NDArray[np.float32], made: F64, h: NDArray[np.float32]) -> F64:
    d = made - w
    return np.asarray(np.einsum("ni,ij,nj->n", d, h.astype(np.float64), d))


def nearest(w: NDArray[np.float32], scale: F64, zero: F64, bits: int) -> F64:
    """Return codes of the nearest levels, groups in rows."""
    rows = w.reshape(len(scale), -1)
    z = zero.astype(np.float64)[:, None]
    return np.asarray(np.rint(np.clip(rows / scale[:, None], -z, 2**bits - 1 - z)) + z)


def published_gptq(w: F64, h: F64, scale: F64, zero: F64, bits: int, damp: float) -> F64:
    """GPTQ as published (algorithm 1, without blocks): codes [N, K], in float64."""
    outs, cols = w.shape
    size = cols // (len(scale) // outs)
    s, z = (np.repeat(v.reshape(outs, -1), size, 1) for v in (scale, zero))
    damped = h + damp * h.diagonal().mean() * np.eye(cols)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    w, codes = w.copy(), np.zeros_like(w)
    for k in range(cols):
        lo = -z[:, k]
        level = np.rint(np.clip(w[:, k] / s[:, k], lo, lo + 2**bits - 1))
        codes[:, k] = level + z[:, k]
        off = (w[:, k] - level * s[:, k]) / upper[k, k]
        w[:, k:] -= off[:, None] * upper[k, k:]
    return codes


def test_moments_are_weighted_sums_of_outer_products() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 1500, 70)).astype(np.float32)
    weight = rng.exponential(size=(3, 1500))
    weight[0, :100] = 0
    want = np.einsum("bti,bt,btj->ij", *(v.astype(np.float64) for v in (x, weight, x)))
    got = second_moments(x, weight)
    np.testing.assert_allclose(got, want, atol=2e-5 * want.max())
    assert (got == got.T).all()
    parts = second_moments(x[0], weight[0])
    for i in (1, 2):
        second_moments(x[i], weight[i], out=parts)
    np.testing.assert_allclose(parts, want, atol=2e-5 * want.max())


def test_moments_of_wide_inputs_are_symmetric() -> None:
    x = np.random.default_rng(1).normal(size=(40, 1100)).astype(np.float32)
    got = second_moments(x)
    assert (got == got.T).all()
    np.testing.assert_allclose(got, x.T.astype(np.float64) @ x, atol=1e-4)


def test_moments_refuse_what_they_cannot_use() -> None:
    x = np.ones((4, 3), np.float32)
    for weight in (np.ones(3), np.array([1.0, 1.0, -1.0, 1.0]), np.array([1.0, np.nan, 1.0, 1.0])):
        with pytest.raises(ConfigError, match="token_weight"):
            second_moments(x, weight)
    x[1, 1] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        second_moments(x)
    assert not second_moments(np.empty((0, 3), np.float32)).any()


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 200])
def test_cholesky_factor(size: int) -> None:
    rng = np.random.default_rng(size)
    a = rng.normal(size=(size, size + 3))
    a = a @ a.T + np.eye(size)
    factor = a.astype(np.float32)
    assert cholesky_(factor)
    np.testing.assert_allclose(np.tril(factor), np.linalg.cholesky(a), rtol=2e-3, atol=2e-3)
    assert not cholesky_(-np.eye(size, dtype=np.float32))


def test_damping_grows_until_a_singular_matrix_has_a_factor() -> None:
    order = np.arange(80)
    x = np.random.default_rng(0).normal(size=(2, 80)).astype(np.float32) * 1e3
    h = x.T @ x
    factor, added = damped_factor(h, order, 1e-12)
    assert added >= 1e-12 * h.diagonal().mean()
    np.testing.assert_allclose(factor @ factor.T, h + added * np.eye(80), atol=1e-5 * h.max())
    zero, added = damped_factor(np.zeros((3, 3), np.float32), np.arange(3), 0.01)
    assert added == 1
    assert (zero == np.eye(3)).all()


def test_gptq_by_hand() -> None:
    """Two inputs, H = [[4, 2], [2, 2]], steps of 1, codes 0..3; no damping to speak of.

    Row [1.4, 0.3]: input 0 counts most and is rounded first, 1.4 -> 1, off by 0.4. Making up for it
    at input 1 takes 0.4 * H_01 / H_11 = 0.4: 0.3 + 0.4 = 0.7 -> 1. Off by (0.4, -0.7): the error is
    4 * 0.16 - 2 * 2 * 0.28 + 2 * 0.49 = 0.5. The nearest codes (1, 0) are off by (0.4, 0.3):
    0.64 + 0.48 + 0.18 = 1.3.
    Row [1.4, 0.04]: 0.44 -> 0; the nearest codes.
    """
    w = np.array([[1.4, 0.3], [1.4, 0.04]], np.float32)
    h = np.array([[4, 2], [2, 2]], np.float32)
    grid = np.ones(2, np.float32), np.zeros(2, np.uint8)
    found = gptq(w, h, *grid, bits=2, damp=1e-9, sweeps=0)
    assert found.codes.tolist() == [[1, 1], [1, 0]]
    np.testing.assert_allclose(
        found.error, [0.5, 4 * 0.16 + 4 * 0.4 * 0.04 + 2 * 0.0016], rtol=1e-5
    )
    # The other way round: input 1 first, 0.3 -> 0; then 1.4 + 0.3 * 2 / 4 = 1.55 -> 2.
    other = gptq(w[:, ::-1].copy(), h[::-1, ::-1].copy(), *grid, bits=2, damp=1e-9, sweeps=0,
                 act_order=False)  # fmt: skip
    assert other.codes[0].tolist() == [0, 2]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [16, 32, 96])
def test_gptq_is_the_published_algorithm(bits: int, size: int) -> None:
    w, x = toy(bits, cols=192)
    h = second_moments(x)
    scale, zero = qparams(w.reshape(-1, size), bits)
    found = gptq(w, h, scale, zero, bits=bits, act_order=False, sweeps=0)
    wide = (v.astype(np.float64) for v in (w, h, scale, zero))
    want = published_gptq(*wide, bits, 0.01)
    plain = nearest(w, scale, zero, bits).reshape(w.shape)
    made, other = (value(codes.astype(np.uint8), scale, zero) for codes in (want, plain))
    kept = error(w, made, h) < error(w, other, h)
    assert kept.mean() > 0.8
    same = (found.codes == want).all(1)[kept]  # but for ties, which change what follows
    assert same.mean() > 0.8
    np.testing.assert_allclose(found.error, error(w, value(found.codes, scale, zero), h), rtol=1e-3)
    assert np.median(found.error[kept] / error(w, made, h)[kept]) == pytest.approx(1, abs=1e-3)


def test_gptq_in_order_of_the_diagonal() -> None:
    w, x = toy(7)
    h = second_moments(x)
    scale, zero = qparams(w, 3)
    order = np.argsort(-h.diagonal(), kind="stable")
    moved = gptq(
        np.ascontiguousarray(w[:, order]), np.ascontiguousarray(h[np.ix_(order, order)]), scale,
        zero, bits=3, act_order=False, sweeps=0,
    )  # fmt: skip
    assert (gptq(w, h, scale, zero, bits=3, sweeps=0).codes[:, order] == moved.codes).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6), st.sampled_from([1, 2, 3, 4, 6, 8]), st.sampled_from([8, 32, -1]),
    st.booleans(), st.sampled_from([3, 40, 300]), st.integers(0, 2),
)  # fmt: skip
def test_never_worse_than_rounding_to_the_nearest(
    seed: int, bits: int, size: int, symmetric: bool, tokens: int, sweeps: int
) -> None:
    w, x = toy(seed, 9, 64, tokens)
    symmetric = symmetric and bits > 1
    h, width = second_moments(x), 64 if size < 0 else size
    full = qparams(w.reshape(-1, width), bits, symmetric=symmetric)
    clipped = clip_search(w, h, bits=bits, group_size=size, symmetric=symmetric)
    codes = nearest(w, *full, bits)
    d = (codes - full[1].astype(float)[:, None]) * full[0][:, None] - w.reshape(codes.shape)
    for g in range(64 // width):
        own = slice(g, None, 64 // width)
        part = h[g * width : (g + 1) * width, g * width : (g + 1) * width].astype(np.float64)
        before = np.einsum("ni,ij,nj->n", d[own], part, d[own])
        assert (clipped.error[own] <= before * (1 + 1e-4) + 1e-6 * part.max()).all()
    for grid in (full, clipped[:2]):
        plain = error(w, value(nearest(w, *grid, bits).reshape(w.shape).astype(np.uint8), *grid), h)
        found = gptq(w, h, *grid, bits=bits, sweeps=sweeps)
        after = error(w, value(found.codes, *grid), h)
        assert (after <= plain * (1 + 1e-3) + 1e-5 * h.max()).all()
        assert found.codes.max() < 2**bits


def test_sweeps_lower_the_error() -> None:
    w, x = toy(3, 32, 128, 600)
    h = second_moments(x)
    scale, zero, _ = clip_search(w, h, bits=2, group_size=32)
    errors = [gptq(w, h, scale, zero, bits=2, sweeps=n).error.sum() for n in (0, 1, 3)]
    plain = output_error(value(nearest(w, scale, zero, 2).reshape(w.shape).astype(np.uint8),
                               scale, zero).astype(np.float32) - w, h).sum()  # fmt: skip
    assert plain > 1.5 * errors[0] > errors[1] > errors[2] * 0.9999


def test_mixed_bits_are_the_widths_one_by_one() -> None:
    w, x = toy(5, 40)
    h, widths = second_moments(x), (2, 8, 3)
    clipped = clip_search(w, h, bits=widths, group_size=32)
    found = gptq(w, h, clipped.scale, clipped.zero, bits=widths)
    for start, stop, bits in ((0, 16, 2), (16, 32, 8), (32, 40, 3)):
        part = clip_search(w[start:stop], h, bits=bits, group_size=32)
        rows = slice(start * 3, stop * 3)
        for one, all_ in zip(part, clipped, strict=True):
            assert (one == all_[rows]).all()
        own = gptq(w[start:stop], h, part.scale, part.zero, bits=bits)
        assert (own.codes == found.codes[start:stop]).all()


def test_outputs_are_done_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = toy(5, outs=40)
    h, widths = second_moments(x), (2, 4, 3)
    clipped = clip_search(w, h, bits=widths, group_size=32)
    whole = gptq(w, h, clipped.scale, clipped.zero, bits=widths)
    monkeypatch.setattr(sys.modules["cmibq.arrays.gptq"], "_VALUES_AT_ONCE", 1)
    parts = gptq(w, h, clipped.scale, clipped.zero, bits=widths)
    assert (whole.codes == parts.codes).all()
    assert (whole.error == parts.error).all()


def test_clip_of_a_row_with_one_outlier() -> None:
    """15 levels: 0..7 twice and one value 28. Clipping at 14 costs 14**2, and rounds all else."""
    w = np.array([[*range(8), *range(8), 28]], np.float32)[:, 1:]
    h = np.diag(np.float32([1] * 15 + [1e-3]))
    plain = clip_search(w, h, bits=3, n_grid=1, max_shrink=0)
    assert plain.scale.tolist() == [4]
    assert plain.error[0] == pytest.approx(2 * (1 + 4 + 1 + 1 + 4 + 1))
    found = clip_search(w, h, bits=3, n_grid=20, max_shrink=1)
    assert found.scale.tolist() == [1]
    assert found.zero.tolist() == [0]
    assert found.error[0] == pytest.approx(21**2 * 1e-3)
    unweighted = clip_search(w, bits=3, n_grid=20, max_shrink=1)
    assert unweighted.scale[0] > 2.5


def test_clip_without_moments_takes_the_error_of_the_weight() -> None:
    w, _ = toy(2)
    by_identity = clip_search(w, np.eye(96, dtype=np.float32), bits=3, group_size=32)
    for one, other in zip(clip_search(w, bits=3, group_size=32), by_identity, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("size", [8, 48, -1])
def test_clip_by_brute_force(size: int) -> None:
    """Symmetric grids: the factors that are tried, one by one, in float64."""
    w, x = toy(11, 5, 48)
    h = second_moments(x)
    found = clip_search(w, h, bits=3, group_size=size, symmetric=True, n_grid=5, max_shrink=0.5)
    width = 48 if size < 0 else size
    rows = w.reshape(-1, width)
    for i, row in enumerate(rows):
        at = i % (48 // width) * width
        part = h[at : at + width, at : at + width].astype(np.float64)

        def cost(f: float, row: NDArray[np.float32] = row, part: F64 = part) -> float:
            step = float(np.float16(np.abs(row * np.float32(f)).max() / 3))
            d = np.clip(np.rint(row / step), -4, 3) * step - row
            return float(d @ part @ d)

        best = min((1 - 0.1 * i for i in range(5)), key=cost)
        tried = [cost(1 - 0.1 * i) for i in range(5)] + [cost(best - 0.05), cost(best + 0.05)]
        assert found.error[i] <= min(tried[:5]) * (1 + 1e-3) + 1e-7
        assert found.error[i] >= min(tried) * (1 - 1e-3) - 1e-7


def test_scales_are_float16_numbers() -> None:
    w, x = toy(4)
    scale = clip_search(w, second_moments(x), bits=4, group_size=16).scale
    assert (scale == scale.astype(np.float16)).all()


def test_results_do_not_depend_on_threads() -> None:
    w, x = toy(6, 70, 320, 500)
    made = []
    for threads in (1, 2, 3):
        with torch_threads(threads):
            h = second_moments(x)
            clipped = clip_search(w, h, bits=2, group_size=64)
            made.append((h, *clipped, *gptq(w, h, clipped.scale, clipped.zero, bits=2)))
    for other in made[1:]:
        assert all((a == b).all() for a, b in zip(made[0], other, strict=True))


def test_inputs_without_activity_and_weights_of_zero() -> None:
    w, x = toy(8)
    x[:, :32] = 0
    w[3] = 0
    h = second_moments(x)
    clipped = clip_search(w, h, bits=3, group_size=32)
    found = gptq(w, h, clipped.scale, clipped.zero, bits=3)
    assert np.isfinite(found.error).all()
    assert found.error[3] == 0
    dead = found.codes[:, :32]
    scale, zero = clipped.scale[::3], clipped.zero[::3]
    assert (dead == nearest(w[:, :32].copy(), scale, zero, 3)).all()
    assert gptq(w[:0], h, clipped.scale[:0], clipped.zero[:0], bits=3).codes.shape == (0, 96)


def test_bad_arguments() -> None:
    w, x = toy(9)
    h = second_moments(x)
    scale, zero = qparams(w, 3)
    bad = h.copy()
    bad[2, 2] = -1
    for call, kind, text in (
        (lambda: clip_search(w, h[:5, :5], bits=3), ConfigError, "h is"),
        (lambda: clip_search(w, bad, bits=3), ModelError, "diagonal"),
        (lambda: clip_search(w, h, bits=9), ConfigError, "bits is 9"),
        (lambda: clip_search(w, h, bits=1, symmetric=True), ConfigError, "bits is 1"),
        (lambda: clip_search(w, h, bits=3, group_size=7), ConfigError, "group_size"),
        (lambda: clip_search(w, h, bits=3, n_grid=0), ConfigError, "n_grid"),
        (lambda: clip_search(w[0], h, bits=3), ConfigError, "matrix"),
        (lambda: gptq(w, h, scale[:-1], zero[:-1], bits=3), ConfigError, "scale has"),
        (lambda: gptq(w, h, scale, zero, bits=3, damp=0), ConfigError, "damp is 0"),
        (lambda: gptq(w, bad, scale, zero, bits=3), ModelError, "diagonal"),
    ):
        with pytest.raises(kind, match=text):
            call()


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_gptq_refuses_steps_that_are_no_steps(rng: np.random.Generator, bad: float) -> None:
    w = rng.normal(size=(4, 16)).astype(np.float32)
    scale, zero = np.ones(4, np.float32), np.zeros(4, np.uint8)
    scale[2] = bad
    with pytest.raises(ConfigError, match="scale has numbers that are not finite and > 0"):
        gptq(w, second_moments(w), scale, zero, bits=3)
