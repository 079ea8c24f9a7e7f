"""Cases of sqdiff: rows longer than a chunk among them."""

from __future__ import annotations

import numpy as np

from tests.kernels.cases.base import Arrays, Case


def _make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    a, b = (rng.normal(size=(rows, cols)).astype(np.float32) for _ in range(2))
    if rows > 1 and cols:
        a[1, 0] = np.nan
    return {"a": a, "b": b, "factor": rng.normal(size=rows)}


def _run(k: object, a: Arrays) -> Arrays:
    total = np.full(len(a["a"]), 77.0)
    k.sqdiff_row(a["a"], a["b"], total, np.full(k.sqdiff_workspace(*a["a"].shape), 77.0))
    return {"sum": total}


def _run_backward(k: object, a: Arrays) -> Arrays:
    out = np.full_like(a["a"], 77)
    k.sqdiff_bwd_row(a["a"], a["b"], a["factor"], out)
    return {"out": out}


CASES = {
    "sqdiff_f32": Case(
        _make,
        _run,
        lambda a: {"sum": ((a["a"].astype(np.float64) - a["b"]) ** 2).sum(1)},
        rtol=1e-6,
    ),
    "sqdiff_bwd_f32": Case(
        _make,
        _run_backward,
        lambda a: {"out": (a["a"] - a["b"]) * a["factor"].astype(np.float32)[:, None]},
    ),
}
