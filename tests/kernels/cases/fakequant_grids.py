"""Cases of fakequant on other grids: powers of two, and by the reciprocal as torch computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.kernels.cases.base import Arrays, Case, nasty
from tests.kernels.cases.fakequant import affine


def _make(kind: str, axis: int) -> Callable[[np.random.Generator, int, int], Arrays]:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
        x, n = nasty(rng, rows, cols), (rows, cols)[axis]
        if kind == "compat":
            return {"x": x, **affine(rng, n)}
        hi = rng.integers(-3, 3, n)
        lo = hi - rng.choice([0, 1, 7, 15, 120], n)
        scale = rng.choice(np.float32([1, 0.3, 6.5, 1e-38, 1e30]), n)
        return {"x": x, "scale": scale, "lo": np.float32(lo), "hi": np.float32(hi)}

    return make


def _run(kind: str, axis: int) -> Callable[[object, Arrays], Arrays]:
    def run(k: object, a: Arrays) -> Arrays:
        out = np.full_like(a["x"], 77)
        call = getattr(k, f"fakequant_{kind}_{('row', 'col')[axis]}")
        call(a["x"], a["scale"], a["lo"], a["hi"], out)
        return {"out": out}

    return run


def _oracle(kind: str, axis: int) -> Callable[[Arrays], Arrays]:
    def oracle(a: Arrays) -> Arrays:
        x = a["x"]
        s, lo, hi = (np.expand_dims(a[k], 1 - axis) for k in ("scale", "lo", "hi"))
        with np.errstate(all="ignore"):
            if kind == "compat":
                r = np.rint(np.clip(x * (np.float32(1) / s), lo, hi))
                return {"out": r * s + np.float32(0)}
            e = np.clip(np.rint(np.log2(np.abs(x / s).astype(np.float64))), lo, hi)
            value = np.copysign((2.0**e).astype(np.float32) * s, x)
            return {"out": np.where(x == 0, np.float32(0), value)}

    return oracle


CASES: dict[str, Case] = {
    f"fakequant_{kind}_f32_{name}": Case(_make(kind, axis), _run(kind, axis), _oracle(kind, axis))
    for kind in ("log2", "compat")
    for axis, name in enumerate(("row", "col"))
}
