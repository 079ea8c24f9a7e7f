"""Cases of gemm: [rows, cols] times [cols, 37], plain and transposed, against float64."""

from __future__ import annotations

import math

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
        "bias": rng.normal(size=N).astype(np.float32),
        "more": rng.normal(size=(1, 1, rows, N)).astype(np.float32),
    }


def run(k: object, s: Arrays) -> Arrays:
    rows, cols = s["a"].shape
    out = {"tt": np.full((1, 2, rows, N), 77, np.float32)}
    work = np.full(k.gemm_workspace(1, rows, N, cols, 0), 255, np.uint8)
    for act in range(4):
        out[f"nn{act}"] = np.full((1, 1, rows, N), 77, np.float32)
        more = s["more"] if act % 2 else None
        args = (s["a"][None, None], s["b"][None, None], 0, 0.25, s["bias"], act, more)
        k.gemm(*args, out[f"nn{act}"], work)
    work = np.full(k.gemm_workspace(2, rows, N, cols, 0), 255, np.uint8)
    at = np.broadcast_to(s["at"].T, (1, 2, rows, cols))
    k.gemm(at, s["bt"].swapaxes(-1, -2)[None], 0, 1.0, None, 0, None, out["tt"], work)
    return out


def activate(z: np.ndarray, act: int) -> np.ndarray:
    """Return an activation in float64."""
    if act == 0:
        return z
    if act == 1:
        return z / 2 * (1 + np.vectorize(math.erf, [np.float64])(z / 2**0.5))
    if act == 2:
        return z / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z**3)))
    return z / (1 + np.exp(-z))


def oracle(s: Arrays) -> Arrays:
    double = {key: x.astype(np.float64) for key, x in s.items()}
    out = {"tt": (double["at"].T @ double["bt"].swapaxes(-1, -2))[None]}
    z = double["a"] @ double["b"] / 4 + double["bias"]
    for act in range(4):
        out[f"nn{act}"] = activate(z, act) + (double["more"] if act % 2 else 0)
        out[f"nn{act}"] = out[f"nn{act}"].reshape(1, 1, *z.shape)
    return out


def run_split(k: object, s: Arrays) -> Arrays:
    """Whole numbers: every product and sum is exact, whatever the order."""
    (rows, cols), out = s["a"].shape, {}
    a, b = (np.rint(s[key] * 8)[None, None] for key in ("a", "b"))
    for split in (1, 2, 3):
        work = np.full(k.gemm_workspace(1, rows, N, cols, split), 255, np.uint8)
        out[f"n{split}"] = np.full((1, 1, rows, N), 77, np.float32)
        k.gemm(a, b, split, 1.0, None, 0, None, out[f"n{split}"], work)
    return out


def oracle_split(s: Arrays) -> Arrays:
    want = np.rint(s["a"] * 8).astype(np.float64) @ np.rint(s["b"] * 8)
    return {f"n{split}": want[None, None] for split in (1, 2, 3)}


def run_half(k: object, s: Arrays) -> Arrays:
    """The same in bfloat16, rounded to it at the end and not."""
    (rows, cols), out = s["a"].shape, {}
    a, b = (bits(np.rint(s[key] * 8))[None, None] for key in ("a", "b"))
    for wide in (0, 1):
        work = np.full(k.gemm_bf16_workspace(1, rows, N, cols, wide), 255, np.uint8)
        made = np.full((1, 1, rows, N), 77, np.float32 if wide else np.uint16)
        to = (None, made) if wide else (made, None)
        k.gemm_bf16(a, b, 1.0, None, 0, None, None, *to, work)
        out[f"wide{wide}"] = made
    return out


def bits(x: np.ndarray) -> np.ndarray:
    """Return the bfloat16 bits of whole numbers below 2**24, rounded half to even."""
    u = x.astype(np.float32).view(np.uint32)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def oracle_half(s: Arrays) -> Arrays:
    want = oracle_split(s)["n1"]
    return {"wide0": bits(want), "wide1": want}


def infinite(s: Arrays) -> Arrays:
    """Return operands without zeros, with an infinity where there is a first element of a."""
    a, b = np.rint(np.abs(s["a"]) * 8) + 1, np.rint(np.abs(s["b"]) * 8) + 1
    a[:1, :1] = np.inf
    return {**s, "a": a / 8, "b": b / 8}


def run_infinite(k: object, s: Arrays) -> Arrays:
    return run_split(k, infinite(s))


def oracle_infinite(s: Arrays) -> Arrays:
    with np.errstate(invalid="ignore"):  # BLAS pads its operands with zeros
        return oracle_split(infinite(s))


CASES: dict[str, Case] = {
    "gemm_bf16_pack": Case(make, run_split, oracle_split),
    "gemm_bf16_round": Case(make, run_half, oracle_half),
    "gemm_bf16_tile": Case(make, run_split, oracle_split),
    "gemm_f32_few": Case(make, run, oracle, rtol=BOUND),
    "gemm_f32_finite": Case(make, run_infinite, oracle_infinite),
    "gemm_f32_finish": Case(make, run, oracle, rtol=BOUND),
    "gemm_f32_pack": Case(make, run, oracle, rtol=BOUND),
    "gemm_f32_stream": Case(make, run, oracle, rtol=BOUND),
    "gemm_f32_tile": Case(make, run, oracle, rtol=BOUND),
}
