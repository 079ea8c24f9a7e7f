"""Cases of gemm: [rows, cols] times [cols, 37], plain and transposed, against float64."""

from __future__ import annotations

import numpy as np

from tests.kernels.cases.base import Arrays, Case

N = 37
BOUND = 2.0**-16
"""258 roundings of 2**-24 per element and block, relative to the largest sum."""


def make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    cols = min(cols, 1040)  # the scalar kernel takes a call per product
    return {
        "a": rng.normal(size=(rows, cols)).astype(np.float32),
        "b": rng.normal(size=(cols, N)).astype(np.float32),
        "at": rng.normal(size=(cols, rows)).astype(np.float32),
        "bt": rng.normal(size=(2, N, cols)).astype(np.float32),
    }


def run(k: object, s: Arrays) -> Arrays:
    rows, cols = s["a"].shape
    out = {key: np.full((1, n, rows, N), 77, np.float32) for key, n in (("nn", 1), ("tt", 2))}
    work = np.full(k.gemm_workspace(1, rows, N, cols), 255, np.uint8)
    k.gemm(s["a"][None, None], s["b"][None, None], out["nn"], work)
    work = np.full(k.gemm_workspace(2, rows, N, cols), 255, np.uint8)
    at = np.broadcast_to(s["at"].T, (1, 2, rows, cols))
    k.gemm(at, s["bt"].swapaxes(-1, -2)[None], out["tt"], work)
    return out


def oracle(s: Arrays) -> Arrays:
    double = {key: x.astype(np.float64) for key, x in s.items()}
    tt = double["at"].T @ double["bt"].swapaxes(-1, -2)
    return {"nn": (double["a"] @ double["b"])[None, None], "tt": tt[None]}


CASES: dict[str, Case] = {
    "gemm_f32_pack": Case(make, run, oracle, rtol=BOUND),
    "gemm_f32_stream": Case(make, run, oracle, rtol=BOUND),
    "gemm_f32_tile": Case(make, run, oracle, rtol=BOUND),
}
