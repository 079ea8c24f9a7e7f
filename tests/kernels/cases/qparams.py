"""Cases of qparams: the squared error that a range search minimises."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.kernels.cases.base import Arrays, Case, finite

BITS, MODE, N_GRID, SHRINK = 3, 6, 5, 0.6
F32 = np.float32


def grid_of_range(
    mn: NDArray, mx: NDArray, bits: int, mode: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (scale, zero) of float32 ranges: the formula of csrc/core/grid.h in NumPy."""
    top = F32(2 ** (bits - 1 if mode & 1 else bits) - 1)
    if mode & 2:
        mn, mx = np.minimum(mn, F32(0)), np.maximum(mx, F32(0))
    span = np.maximum(-mn, mx) if mode & 1 else mx - mn
    scale = np.maximum(span, F32(1e-5)) / top
    if mode & 4:
        scale = np.maximum(scale.astype(np.float16), np.float16(2.0**-24)).astype(F32)
    if mode & 1:
        return scale, np.full_like(scale, top + 1)
    return scale, np.clip(-np.rint(mn / scale), F32(0), top) + F32(0)


def _make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    return {"x": finite(rng, rows, max(cols, 1))}


def _run(k: object, a: Arrays) -> Arrays:
    rows = len(a["x"])
    out = {"scale": np.empty(rows, F32), "zero": np.empty(rows, np.uint8), "err": np.empty(rows)}
    k.qparams_mse_row(a["x"], BITS, MODE, N_GRID, SHRINK, *out.values())
    return out


def _oracle(a: Arrays) -> Arrays:
    """Return the squared error; ties of errors that differ in the last bits leave the rest open."""
    x, top = a["x"], F32(2**BITS - 1)
    ends = [e.astype(np.float64) for e in (x.min(1), x.max(1))]
    errors = []
    for i in range(N_GRID):
        mn, mx = ((e * (1.0 - i * SHRINK / N_GRID)).astype(F32) for e in ends)
        s, z = (p[:, None] for p in grid_of_range(mn, mx, BITS, MODE))
        d = np.rint(np.clip(x / s, -z, top - z)) * s - x
        errors.append(np.square(d.astype(np.float64)).sum(1))
    return {"err": np.min(errors, axis=0)}


CASES: dict[str, Case] = {"sqerr_f32_row": Case(_make, _run, _oracle, rtol=1e-12)}
