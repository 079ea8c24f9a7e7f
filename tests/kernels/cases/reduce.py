"""Cases of reduce: minimum, maximum, largest magnitude, sum of magnitudes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.kernels.cases.base import Arrays, Case, nasty


def _make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    weight = rng.random(rows) + 0.1
    weight[::4] = 0.0
    x = nasty(rng, rows, cols)
    x[np.isnan(x) & (rng.random(x.shape) < 0.9)] = -0.0  # most rows and columns without NaN
    return {"x": x, "weight": weight}


def _make_filled(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    return _make(rng, max(rows, 1), max(cols, 1))


def _run(
    method: str, axis: int, names: tuple[str, ...], dtype: type
) -> Callable[[object, Arrays], Arrays]:
    def run(k: object, a: Arrays) -> Arrays:
        out = {name: np.full(a["x"].shape[axis], 77, dtype) for name in names}
        extra = [a["weight"]] if method == "abssum_col" else []
        getattr(k, method)(a["x"], *extra, *out.values())
        return out

    return run


def _minmax_oracle(axis: int) -> Callable[[Arrays], Arrays]:
    def oracle(a: Arrays) -> Arrays:
        x = a["x"] + np.float32(0)
        return {"mn": x.min(1 - axis), "mx": x.max(1 - axis)}

    return oracle


def _absmax_oracle(axis: int) -> Callable[[Arrays], Arrays]:
    def oracle(a: Arrays) -> Arrays:
        return {"out": np.abs(a["x"]).max(1 - axis, initial=0)}

    return oracle


def _abssum_row_oracle(a: Arrays) -> Arrays:
    return {"out": np.abs(a["x"].astype(np.float64)).sum(1)}


def _abssum_col_oracle(a: Arrays) -> Arrays:
    read = a["weight"] != 0
    return {"out": (a["weight"][read, None] * np.abs(a["x"][read].astype(np.float64))).sum(0)}


CASES: dict[str, Case] = {
    f"minmax_f32_{name}": Case(
        _make_filled,
        _run(f"minmax_{name}", axis, ("mn", "mx"), np.float32),
        _minmax_oracle(axis),
    )
    for axis, name in enumerate(("row", "col"))
}
CASES |= {
    f"absmax_f32_{name}": Case(
        _make, _run(f"absmax_{name}", axis, ("out",), np.float32), _absmax_oracle(axis)
    )
    for axis, name in enumerate(("row", "col"))
}
CASES["abssum_f32_row"] = Case(
    _make, _run("abssum_row", 0, ("out",), np.float64), _abssum_row_oracle, rtol=1e-12
)
CASES["abssum_f32_col"] = Case(
    _make, _run("abssum_col", 1, ("out",), np.float64), _abssum_col_oracle, rtol=1e-12
)
