"""Cases of gemm_s8: int8 [rows, cols] times [37, cols], against int64; rows of a are strided."""

from __future__ import annotations

import numpy as np

from tests.kernels.cases.base import Arrays, Case

N, LO, HI, ZERO = 37, -100, 120, 3


def make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    cols = min(cols, 2100)  # more than one block of inputs; the scalar kernel is slow
    a, b = (rng.integers(-128, 128, (n, cols + 5)).astype(np.int8) for n in (rows, N))
    a[::3], b[::4] = -128, -128
    return {
        "a": a,
        "b": b,
        "bias": rng.integers(-5000, 5000, N).astype(np.int32),
        "multiplier": rng.integers(0, 2**31, N).astype(np.int32),
        "shift": rng.integers(30, 50, N).astype(np.int32),
    }


def dyadic(sums: np.ndarray, multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return sums * multiplier / 2**shift, half to even, in Python's integers."""

    def one(c: int, m: int, e: int) -> int:
        whole, rest = divmod(int(c) * int(m), 1 << int(e))
        return whole + (2 * rest + whole % 2 > 1 << int(e))

    return np.frompyfunc(one, 3, 1)(sums, multiplier, shift)


def run(k: object, s: Arrays) -> Arrays:
    a, b = s["a"][:, :-5], s["b"][:, 2:-3]
    (rows, cols), out = a.shape, {}
    out["sums"] = np.full((rows, N), 77, np.int32)
    out["plus"] = np.full((rows, N), 77, np.int32)
    out["codes"] = np.full((rows, N), 77, np.int8)
    work = np.full(k.gemm_s8_workspace(rows, N, cols, 0), 255, np.uint8)
    k.gemm_s8(a, b, None, None, None, 0, -128, 127, out["sums"], None, work)
    k.gemm_s8(a, b, s["bias"], None, None, 0, -128, 127, out["plus"], None, work)
    work = np.full(k.gemm_s8_workspace(rows, N, cols, 1), 255, np.uint8)
    grid = s["bias"], s["multiplier"], s["shift"]
    k.gemm_s8(a, b, *grid, ZERO, LO, HI, None, out["codes"], work)
    return out


def oracle(s: Arrays) -> Arrays:
    sums = s["a"][:, :-5].astype(np.int64) @ s["b"][:, 2:-3].T.astype(np.int64)
    plus = sums + s["bias"]
    codes = np.clip(dyadic(plus, s["multiplier"], s["shift"]) + ZERO, LO, HI)
    return {"sums": sums, "plus": plus, "codes": codes.astype(np.int8)}


CASES: dict[str, Case] = {
    "gemm_s8_finish": Case(make, run, oracle),
    "gemm_s8_pack": Case(make, run, oracle),
    "gemm_s8_tile": Case(make, run, oracle),
}
