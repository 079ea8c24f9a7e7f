"""Cases of histogram: counts, order statistics, the clip of least divergence."""

from __future__ import annotations

import numpy as np

from tests.kernels.cases.base import Arrays, Case

SIZE, RANKS = 64, (0, 1, 7, 8)


def _make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    x = rng.normal(0, 2, (rows, cols)).astype(np.float32)
    x[rng.random((rows, cols)) < 0.1] = -0.0
    x[rng.random((rows, cols)) < 0.05] = 1e-42
    x[1:2], x[2:3] = 0.0, 3.0
    return {"x": x}


def _exponent(a: Arrays) -> int:
    return -1 if a["x"].size == 0 else int(np.ceil(np.log2(np.abs(a["x"]).max() + 1))) - 4


def _histogram(k: object, a: Arrays) -> Arrays:
    counts, x = np.zeros(SIZE, np.int64), a["x"].ravel()
    work = np.empty(k.histogram_workspace(x.size, SIZE), np.uint8)
    k.histogram(x, _exponent(a), -SIZE // 2, counts, work)
    return {"counts": counts}


def _histogram_oracle(a: Arrays) -> Arrays:
    place = np.floor(a["x"].astype(np.float64) * 2.0 ** -_exponent(a)).astype(int) + SIZE // 2
    return {"counts": np.bincount(place.ravel(), minlength=SIZE)}


def _ranks(k: object, a: Arrays) -> Arrays:
    rows, cols = a["x"].shape
    ranks = np.array([r % cols for r in RANKS] if cols else [], np.int64)
    out = np.full((rows, len(ranks)), 77, np.float32)
    k.ranks_row(a["x"], ranks, out, np.empty(k.ranks_workspace(rows, cols), np.uint8))
    return {"out": out}


def _ranks_oracle(a: Arrays) -> Arrays:
    cols = a["x"].shape[1]
    ordered = np.sort(a["x"] + np.float32(0), 1)
    return {"out": ordered[:, [r % cols for r in RANKS] if cols else []]}


def _magnitudes(k: object, a: Arrays) -> Arrays:
    rows = len(a["x"])
    counts, top = np.full((rows, SIZE), 7, np.uint32), np.full(rows, 7, np.float32)
    work = np.empty(k.magnitudes_workspace(rows, SIZE), np.uint8)
    k.magnitudes_row(a["x"], counts, top, work)
    best, least = np.full(rows, 7, np.uint32), np.full(rows, 7.0)
    k.klclip_row(counts, 8, best, least, np.empty(k.klclip_workspace(rows, SIZE) // 8))
    return {"counts": counts, "top": top, "best": best, "least": least}


def divergence(counts: np.ndarray, i: int, levels: int) -> float:
    """P and Q as lists of numbers, as the source states them."""
    p = counts[:i].astype(np.float64)
    p[-1] += counts[i:].sum()
    q = np.zeros(i)
    for g in range(levels):
        group = slice(g * i // levels, (g + 1) * i // levels)
        full = counts[:i][group] > 0
        if full.any():
            q[group][full] = counts[:i][group].sum() / full.sum()
    if not q.sum() or (q[p > 0] == 0).any():
        return np.inf
    if counts[i:].any() and not counts[: i - 1].any():
        return np.inf  # everything in one bin
    p, q = p / p.sum(), q / q.sum()
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


def _magnitudes_oracle(a: Arrays) -> Arrays:
    x = np.abs(a["x"])
    top = x.max(1, initial=0)
    counts = np.zeros((len(x), SIZE))
    least = np.full(len(x), np.inf)
    for r, row in enumerate(x):
        with np.errstate(divide="ignore", over="ignore"):
            scale = np.float32(np.float64(SIZE) / np.float64(top[r]))
        place = (row * scale).astype(np.int64) if np.isfinite(scale) else np.full(row.shape, SIZE)
        counts[r] = np.bincount(np.minimum(place, SIZE - 1), minlength=SIZE)
        if len(x) <= 70 and row.size:
            least[r] = min(divergence(counts[r], i, 8) for i in range(8, SIZE + 1))
    return {"counts": counts, "top": top} | ({"least": least} if len(x) <= 70 else {})


CASES = {
    "histogram_f32": Case(_make, _histogram, _histogram_oracle),
    "histogram_digits_f32": Case(_make, _ranks, _ranks_oracle),
    "histogram_gather_f32": Case(_make, _ranks, _ranks_oracle),
    "histogram_magnitude_f32": Case(_make, _magnitudes, _magnitudes_oracle, rtol=1e-9),
    "histogram_klclip": Case(_make, _magnitudes, _magnitudes_oracle, rtol=1e-9),
}
