"""Cases of fakequant: forward and backward, parameters per row and per column."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tests.kernels.cases.base import Arrays, Case, nasty


def affine(rng: np.random.Generator, n: int) -> dict[str, NDArray[np.float32]]:
    bits = rng.integers(1, 9, n)
    zero = rng.integers(0, 2**bits)
    return {
        "scale": rng.choice(np.array([0.5, 0.1, 3.7e-3], np.float32), n),
        "lo": (-zero).astype(np.float32),
        "hi": (2**bits - 1 - zero).astype(np.float32),
    }


def _fq_make(axis: int) -> Callable[[np.random.Generator, int, int], Arrays]:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
        x = nasty(rng, rows, cols)
        g = rng.normal(size=x.shape).astype(np.float32)
        return {"x": x, "g": g, **affine(rng, (rows, cols)[axis])}

    return make


def _fq_run(axis: int) -> Callable[[object, Arrays], Arrays]:
    def run(k: object, a: Arrays) -> Arrays:
        out = np.full_like(a["x"], 77)
        getattr(k, ("fakequant_row", "fakequant_col")[axis])(
            a["x"], a["scale"], a["lo"], a["hi"], out
        )
        return {"out": out}

    return run


def _fq_bwd_run(axis: int) -> Callable[[object, Arrays], Arrays]:
    def run(k: object, a: Arrays) -> Arrays:
        gx = np.full_like(a["x"], 77)
        gscale = np.full(a["scale"].shape, 77.0)
        args = [a["x"], a["g"], a["scale"], a["lo"], a["hi"], gx, gscale]
        if axis:
            work = np.full((k.fakequant_bwd_blocks(*gx.shape), gscale.size), 77.0)
            k.fakequant_bwd_col(*args, work)
        else:
            work = np.full(k.fakequant_bwd_row_workspace(*gx.shape), 77.0)
            k.fakequant_bwd_row(*args, work)
        return {"gx": gx, "gscale": gscale}

    return run


def _fq_oracle(axis: int) -> Callable[[Arrays], Arrays]:
    def oracle(a: Arrays) -> Arrays:
        s, lo, hi = (np.expand_dims(a[k], 1 - axis) for k in ("scale", "lo", "hi"))
        with np.errstate(all="ignore"):
            r = np.rint(np.clip(a["x"] / s, lo, hi))
            return {"out": r * s + np.float32(0)}

    return oracle


def _fq_bwd_oracle(axis: int) -> Callable[[Arrays], Arrays]:
    def oracle(a: Arrays) -> Arrays:
        s, lo, hi = (np.expand_dims(a[k], 1 - axis) for k in ("scale", "lo", "hi"))
        with np.errstate(all="ignore"):
            v = a["x"] / s
            inside = (v >= lo) & (v <= hi)
            d = np.rint(np.clip(v, lo, hi)) - np.where(inside, v, np.float32(0))
            gscale = (a["g"].astype(np.float64) * d).sum(1 - axis)
        return {"gx": np.where(inside, a["g"], np.float32(0)), "gscale": gscale}

    return oracle


CASES: dict[str, Case] = {
    "fakequant_f32_row": Case(_fq_make(0), _fq_run(0), _fq_oracle(0)),
    "fakequant_f32_col": Case(_fq_make(1), _fq_run(1), _fq_oracle(1)),
    "fakequant_bwd_f32_row": Case(_fq_make(0), _fq_bwd_run(0), _fq_bwd_oracle(0), rtol=1e-12),
    "fakequant_bwd_f32_col": Case(_fq_make(1), _fq_bwd_run(1), _fq_bwd_oracle(1), rtol=1e-12),
}
