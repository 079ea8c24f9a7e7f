"""Cases of qgemm: a packed weight [rows, cols] times a few activations, against float64.

A case multiplies 1, 5 and 13 activations in all widths; the s8 case checks integers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tests.kernels.cases.base import Arrays, Case
from tests.kernels.cases.pack import stream

BITS, ROWS = range(2, 9), 13


def groups_of(cols: int) -> int:
    """Return the largest number of equal groups that are multiples of 8; 1 where there is none."""
    return max((g for g in (2, 3, 5) if cols and cols % (8 * g) == 0), default=1)


def make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    cols = min(cols, 1040)  # the oracle takes a step per input
    groups = groups_of(cols)
    return {
        "x": rng.normal(size=(ROWS, cols)).astype(np.float32),
        "xq": rng.integers(-128, 128, (ROWS, cols)).astype(np.int8),
        "xscale": rng.random(ROWS).astype(np.float32),
        "codes": rng.integers(0, 256, (rows, cols)).astype(np.uint8),
        "zero": rng.integers(0, 256, (rows, groups)).astype(np.uint8),
        "scale": (rng.random((rows, groups)) + 0.01).astype(np.float16),
        "bias": rng.normal(size=rows).astype(np.float32),
    }


def weights(a: Arrays) -> Iterator[tuple[str, int, tuple[NDArray | None, ...], NDArray]]:
    """Yield (key, bits, (packed, scale, zero, bias), code - zero) for all widths and both kinds."""
    groups, cols = a["scale"].shape[1], a["codes"].shape[1]
    for bits in BITS:
        codes, zero = (a[k] & np.uint8(2**bits - 1) for k in ("codes", "zero"))
        packed = (stream(codes, bits), a["scale"].view(np.uint16))
        points = np.repeat(zero.astype(np.int32), cols // groups, 1)
        yield f"a{bits}", bits, (*packed, stream(zero, bits), None), codes - points
        yield f"s{bits}", bits, (*packed, None, a["bias"]), codes - np.int32(2 ** (bits - 1))


def _work(k: object, a: Arrays, bits: int) -> NDArray[np.uint8]:
    sizes = (len(a["x"]), *a["codes"].shape, a["scale"].shape[1])
    return np.full(k.qgemm_workspace(*sizes, bits), 255, np.uint8)


def _f32(k: object, a: Arrays) -> Arrays:
    out = {}
    for key, bits, (packed, scale, zero, bias), _ in weights(a):
        out[key] = np.full((ROWS, len(packed)), 77, np.float32)
        work = _work(k, a, bits)
        k.qgemm_f32(a["x"], packed, bits, scale, zero, bias, out[key], work)
    return out


def _s8(k: object, a: Arrays) -> Arrays:
    out = {}
    for key, bits, (packed, scale, zero, bias), _ in weights(a):
        out[key] = np.full((ROWS, len(packed)), 77, np.float32)
        work = _work(k, a, bits)
        k.qgemm_s8(a["xq"], a["xscale"], packed, bits, scale, zero, bias, out[key], work)
    return out


def chain(x: NDArray, w: NDArray) -> NDArray[np.float32]:
    """Return x . w^T, the products of 128 inputs at a time in one chain of FMAs in float32.

    A product is exact in float64 (24-bit x, 19-bit w); the sum is rounded to float64 and once more
    to float32, which can differ from an FMA by one unit in the last place, very rarely.
    """
    total = np.zeros((len(x), len(w)), np.float32)
    for k0 in range(0, x.shape[1], 128):
        acc = np.zeros_like(total)
        for k in range(k0, min(k0 + 128, x.shape[1])):
            acc = (np.outer(x[:, k].astype(np.float64), w[:, k]) + acc).astype(np.float32)
        total = total + acc
    return total


def _f32_oracle(a: Arrays) -> Arrays:
    out, cols = {}, a["codes"].shape[1]
    grown = np.repeat(a["scale"].astype(np.float64), cols // a["scale"].shape[1], 1)
    for key, _, (_, _, _, bias), level in weights(a):
        out[key] = chain(a["x"], level * grown)
        out[key] = out[key] if bias is None else out[key] + bias
    return out


def _s8_oracle(a: Arrays) -> Arrays:
    out, groups = {}, a["scale"].shape[1]
    for key, _, (_, _, _, bias), level in weights(a):
        acc = np.zeros((ROWS, len(level)), np.float32)
        for g, part in enumerate(np.split(level, groups, 1)):
            dot = np.split(a["xq"].astype(np.int64), groups, 1)[g] @ part.T.astype(np.int64)
            acc = acc + a["scale"][:, g].astype(np.float32) * dot.astype(np.float32)
        acc = acc * a["xscale"][:, None]
        out[key] = acc if bias is None else acc + bias
    return out


_F32_CASE = Case(make, _f32, _f32_oracle, rtol=2.0**-22)
_S8_CASE = Case(make, _s8, _s8_oracle)
CASES: dict[str, Case] = {
    "qgemm_f32_panel": _F32_CASE,
    "qgemm_f32_tile": _F32_CASE,
    "qgemm_s8_sum": _S8_CASE,
    "qgemm_s8_panel": _S8_CASE,
    "qgemm_s8_tile": _S8_CASE,
}
