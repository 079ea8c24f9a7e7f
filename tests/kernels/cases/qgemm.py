"""Cases of qgemm: a packed weight [rows, cols] times a few activations, against float64.

A case multiplies 1, 5 and 13 activations in all widths; the s8 case checks integers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tests.kernels.cases.base import Arrays, Case
from tests.kernels.cases.pack import stream
from tests.kernels.cases.sums import f32_sums, groups_of, s8_sums

BITS, ROWS = range(2, 9), 13


def make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    cols = min(cols, 1040)
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


def _f32_oracle(a: Arrays) -> Arrays:
    scale, out = a["scale"].astype(np.float32), {}
    for key, _, (_, _, _, bias), level in weights(a):
        out[key] = f32_sums(a["x"], level.astype(np.int64), scale)
        out[key] = out[key] if bias is None else out[key] + bias
    return out


def _s8_oracle(a: Arrays) -> Arrays:
    scale, out = a["scale"].astype(np.float32), {}
    for key, _, (_, _, _, bias), level in weights(a):
        acc = s8_sums(a["xq"], level.astype(np.int64), scale) * a["xscale"][:, None]
        out[key] = acc if bias is None else acc + bias
    return out


CASES: dict[str, Case] = {
    "qgemm_s8_sum": Case(make, _s8, _s8_oracle),
    "qlinear_f32_digits": Case(make, _f32, _f32_oracle),
}
