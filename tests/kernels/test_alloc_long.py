"""Rows of channels so long that they are cut: the same bits on every ISA and number of threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cmibq.runtime import native

C = native()
PIECE = 1 << 17
LO, HI, TARGET = 2.0, 8.0, 3.7
f32 = np.float32
Make = Callable[[np.random.Generator, int], np.ndarray]

WISHES: dict[str, Make] = {
    "normal": lambda rng, n: rng.normal(0, 3, n).astype(f32),
    "logits": lambda rng, n: rng.normal(100, 50, n).astype(f32),
    "far": lambda rng, n: np.where(np.arange(n) % 2, f32(1e9), f32(-1e9)),
    "one_nan": lambda rng, n: np.where(np.arange(n) == n - 1, f32(np.nan), f32(1)),
}


def project(k: object, x: np.ndarray, weight: np.ndarray | None) -> list[np.ndarray]:
    bits, gx, codes = np.empty_like(x), np.empty_like(x), np.full(x.shape, 77, np.uint8)
    k.project_row(x, weight, LO, HI, TARGET, bits)
    k.project_bwd_row(x, bits, weight, LO, HI, gx)
    if np.isfinite(bits).all():
        k.round_bits_row(bits, 2, 8, int(TARGET * x.shape[1]), codes)
    return [bits, gx, codes]


@pytest.mark.parametrize("wishes", WISHES)
def test_isas_and_threads_agree(rng: np.random.Generator, wishes: str) -> None:
    n = 2 * PIECE + 77
    x = WISHES[wishes](rng, n)[None]
    weight = (rng.random(n) + 0.1).astype(f32)
    for w in (None, weight):
        want = project(C.Kernels("scalar", 1), x, w)
        for isa, threads in [(C.ISAS[-1], 1), (C.ISAS[-1], 3), ("scalar", 2)]:
            for a, b in zip(project(C.Kernels(isa, threads), x, w), want, strict=True):
                np.testing.assert_array_equal(a, b)


def test_the_mean_is_the_target_and_the_gradient_leaves_it(rng: np.random.Generator) -> None:
    n = 3 * PIECE
    x = WISHES["logits"](rng, 2 * n).reshape(2, n)
    bits, gx, codes = project(C.Kernels(None, 2), x, None)
    np.testing.assert_allclose(bits.mean(1, dtype=np.float64), TARGET, rtol=1e-6)
    free = (bits > LO) & (bits < HI)
    want = np.where(free, x - np.mean(x, 1, np.float64, keepdims=True, where=free), 0)
    np.testing.assert_allclose(gx, want, rtol=1e-6, atol=1e-5)
    assert codes.sum(1, dtype=np.int64).tolist() == [int(TARGET * n)] * 2
    assert (np.abs(codes - bits.astype(np.float64)) <= 1).all()


@pytest.mark.parametrize("total", [2, 5, 7, 8])
@pytest.mark.parametrize("threads", [1, 3])
def test_rounding_takes_the_largest_fractions_first(
    rng: np.random.Generator, total: int, threads: int
) -> None:
    n = 2 * PIECE + 1001
    b = (2 + 6 * rng.random(n)).astype(f32)
    b[rng.random(n) < 0.4] = 3.5  # ties in every piece
    want = np.floor(b).astype(np.int64)
    while left := total * n - want.sum():
        can = np.flatnonzero(want < 8 if left > 0 else want > 2)
        wish = (b - np.floor(b))[can]
        order = can[np.argsort(-wish if left > 0 else wish, kind="stable")]
        want[order[: abs(left)]] += np.sign(left)
    got = np.empty((1, n), np.uint8)
    C.Kernels(None, threads).round_bits_row(b[None], 2, 8, total * n, got)
    np.testing.assert_array_equal(got[0], want)
