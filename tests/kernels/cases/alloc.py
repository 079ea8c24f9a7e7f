"""Cases of alloc: bits with a given mean, their gradient and rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cmibq.runtime import native
from tests.kernels.cases.base import Arrays, Case

LO, HI, TARGET = 2.0, 8.0, 3.7


def _make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    spread = rng.choice([0.1, 1.0, 30.0], (rows, 1))
    x = (rng.normal(0, 1, (rows, cols)) * spread).astype(np.float32)
    x[1:2], x[2:3] = 0.5, np.where(np.arange(cols) % 2, 1e6, -1e6)  # constant; two far groups
    x[3:4, :1] = np.nan
    weight = (rng.random(cols) + 0.1).astype(np.float32)
    return {"x": x, "weight": weight, "g": rng.normal(0, 1, (rows, cols)).astype(np.float32)}


def _project(k: object, a: Arrays) -> Arrays:
    plain, weighted = np.full_like(a["x"], 77), np.full_like(a["x"], 77)
    k.project_row(a["x"], None, LO, HI, TARGET, plain)
    k.project_row(a["x"], a["weight"], LO, HI, TARGET, weighted)
    return {"plain": plain, "weighted": weighted}


def _backward(k: object, a: Arrays) -> Arrays:
    bits = np.clip(a["x"] + np.float32(4), np.float32(LO), np.float32(HI))
    plain, weighted = np.full_like(a["x"], 77), np.full_like(a["x"], 77)
    k.project_bwd_row(a["g"], bits, None, LO, HI, plain)
    k.project_bwd_row(a["g"], bits, a["weight"], LO, HI, weighted)
    return {"plain": plain, "weighted": weighted}


def _project_one(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Bisection on the shift in float64, to the last bit."""
    if not np.isfinite(x).all():
        return np.full_like(x, np.nan)
    left, right = LO - x.max(), HI - x.min()
    for _ in range(200):
        middle = 0.5 * (left + right)
        if (w * np.clip(x + middle, LO, HI)).sum() < TARGET * w.sum():
            left = middle
        else:
            right = middle
    return np.clip(x + right, LO, HI)


def _project_oracle(a: Arrays) -> Arrays:
    x, w = a["x"].astype(np.float64), a["weight"].astype(np.float64)
    if x.size == 0:
        return {"plain": x, "weighted": x}
    return {
        "plain": np.stack([_project_one(row, np.ones_like(w)) for row in x]),
        "weighted": np.stack([_project_one(row, w) for row in x]),
    }


def _backward_oracle(a: Arrays) -> Arrays:
    b = np.clip(a["x"] + np.float32(4), np.float32(LO), np.float32(HI)).astype(np.float64)
    free = (b > LO) & (b < HI)
    g = np.where(free, a["g"].astype(np.float64), 0)
    out = {}
    for name, w in (("plain", np.ones(b.shape[1])), ("weighted", a["weight"].astype(np.float64))):
        total = np.where(free, w, 0).sum(1, keepdims=True)
        mean = g.sum(1, keepdims=True) / np.maximum(total, 1e-300)
        out[name] = np.where(free, g - w * mean, 0)
    return out


def _make_real(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    b = (2 + 6 * rng.random((rows, cols))).astype(np.float32)
    b[:, ::3] = np.round(b[:, ::3] * 2) / 2  # many equal fractions
    return {"b": b}


def _round(total: Callable[[int], int]) -> Callable[[object, Arrays], Arrays]:
    def run(k: object, a: Arrays) -> Arrays:
        out = np.full(a["b"].shape, 77, np.uint8)
        k.round_bits_row(a["b"], 2, 8, total(a["b"].shape[1]), out)
        return {"out": out}

    return run


def _round_oracle(bits: int, less: int = 0) -> Callable[[Arrays], Arrays]:
    def run(a: Arrays) -> Arrays:
        out = np.floor(a["b"].astype(np.float64))
        cols = a["b"].shape[1]
        total = bits * cols - (cols // less if less else 0)
        for row, b in zip(out, a["b"], strict=True):
            while (left := total - int(row.sum())) != 0:
                can = np.flatnonzero(row < 8 if left > 0 else row > 2)
                wish = np.where(b < 8, b - np.floor(b), 0)[can]
                order = can[np.argsort(-wish if left > 0 else wish, kind="stable")]
                row[order[: abs(left)]] += np.sign(left)
        return {"out": out}

    return run


COST = np.array([2, 3, 4, 6, 8, 9], np.int64)


def _make_table(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    d = np.cumsum(rng.integers(0, 64, (rows * cols, 6)), 1)[:, ::-1].astype(np.float32)
    d[::5] = rng.integers(0, 64, (len(d[::5]), 6))  # not convex, not falling
    d[1::7, 2] = np.inf
    return {"d": d}


def _allocate(k: object, a: Arrays) -> Arrays:
    n, m = a["d"].shape
    choice, info, spent = np.full(n, 77, np.uint8), np.zeros(3), np.zeros(1, np.int64)
    work = np.empty(k.allocate_workspace(n, m), np.uint8)
    k.allocate(a["d"], COST, None, None, 5 * n, choice, info, spent, work)
    return {"choice": choice, "info": info, "spent": spent}


def _allocate_oracle(a: Arrays) -> Arrays:
    """The total by a dynamic program over the whole budget, for sizes that it can take."""
    d = a["d"].astype(np.float64)
    if len(d) > 200:
        return {}
    best = np.full(5 * len(d) + 1, np.inf)
    best[0] = 0.0
    for row in d:
        more = np.full_like(best, np.inf)
        for c, v in zip(COST, row, strict=True):
            more[c:] = np.minimum(more[c:], best[: max(len(best) - c, 0)] + v)
        best = more
    got = _allocate(native().Kernels("scalar"), a)
    assert got["spent"][0] <= 5 * len(d)
    assert got["info"][1] == 0.0
    assert got["info"][0] == best.min(), (got["info"], best.min())
    return {}


CASES = {
    "alloc_steps_f32": Case(_make_table, _allocate, _allocate_oracle),
    "alloc_band_f32": Case(_make_table, _allocate, _allocate_oracle),
    "alloc_take_f32": Case(_make_table, _allocate, _allocate_oracle),
    "alloc_sums_f32": Case(_make, _project, _project_oracle, rtol=3e-7),
    "alloc_guess_f32": Case(_make, _project, _project_oracle, rtol=3e-7),
    "alloc_shift_f32": Case(_make, _project, _project_oracle, rtol=3e-7),
    "alloc_bwd_sums_f32": Case(_make, _backward, _backward_oracle, rtol=1e-6),
    "alloc_bwd_f32": Case(_make, _backward, _backward_oracle, rtol=1e-6),
    "alloc_floor_f32": Case(_make_real, _round(lambda n: 2 * n), _round_oracle(2)),
    "alloc_round_count_f32": Case(_make_real, _round(lambda n: 5 * n), _round_oracle(5)),
    "alloc_round_give_f32": Case(_make_real, _round(lambda n: 8 * n - n // 3), _round_oracle(8, 3)),
}
