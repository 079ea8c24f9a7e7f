"""Cases of qlinear: activations times the tiles of a packed weight, every step as documented."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tests.kernels.cases import qtile
from tests.kernels.cases.base import Arrays, Case
from tests.kernels.cases.sums import f32_sums, groups_of, s8_sums

ROWS = 11


def make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    cols, rows = min(cols, 1040), min(rows, 80)
    groups = groups_of(cols)
    x = rng.normal(size=(ROWS, cols)).astype(np.float32)
    x[1] *= 10.0 ** rng.integers(-12, 12, cols)  # far apart in one block
    x[2] = 0.0
    x[3] *= 1e-40
    x[4:5, :1] = np.inf
    return {
        "x": x,
        "xq": rng.integers(-128, 128, (ROWS, cols)).astype(np.int8),
        "xscale": rng.random(ROWS).astype(np.float32),
        "codes": rng.integers(0, 256, (rows, cols)).astype(np.uint8),
        "zero": rng.integers(0, 256, (rows, groups)).astype(np.uint8),
        "scale": (rng.random((rows, groups)) + 0.01).astype(np.float16).view(np.uint16),
        "bias": rng.normal(size=rows).astype(np.float32),
        "other": rng.normal(size=(ROWS, rows)).astype(np.float32),
    }


def levels(a: Arrays, bits: object, asymmetric: bool) -> NDArray[np.int64]:
    out = np.empty(a["codes"].shape, np.int64)
    for s, b in qtile.strips(a, bits):
        mask = np.uint8(2**b - 1)
        zero = (a["zero"][s] & mask).astype(np.int64) if asymmetric else np.int64(2 ** (b - 1))
        zero = np.broadcast_to(zero, a["zero"][s].shape)
        size = a["codes"].shape[1] // zero.shape[1]
        out[s] = (a["codes"][s] & mask).astype(np.int64) - np.repeat(zero, size, 1)
    return out


def forms(a: Arrays) -> Iterator[tuple[str, object, bool]]:
    for key, bits in qtile.widths(len(a["codes"])).items():
        yield key + "a", bits, True
        yield key + "s", bits, False


def _call(k: object, a: Arrays, bits: object, asymmetric: bool, mode: str) -> NDArray:
    n, cols = a["codes"].shape
    groups = a["scale"].shape[1]
    one, each = (bits, None) if isinstance(bits, int) else (2, bits)
    tiles = qtile.repacked(k, a, bits, asymmetric)
    act_bits, codes = 8 if mode == "dynamic" else 16, int(mode == "s8")
    size = k.qlinear_workspace(ROWS, n, cols, groups, one, each, act_bits, 0, codes)
    work, out = np.full(size, 255, np.uint8), np.full((ROWS, n), 77, np.float32)
    x = (a["xq"], a["xscale"]) if codes else (a["x"], act_bits)
    run = k.qlinear_s8 if codes else k.qlinear_f32
    bias = a["bias"] if asymmetric else None
    up, rest = (None, a["other"]) if asymmetric else (a["other"], None)
    run(*x, tiles, groups, one, each, int(asymmetric), bias, up, rest, 0, out, work)
    return out


def _run(mode: str) -> object:
    return lambda k, a: {key: _call(k, a, b, z, mode) for key, b, z in forms(a)}


def _finish(a: Arrays, acc: NDArray, asymmetric: bool) -> NDArray:
    return acc + a["bias"] + a["other"] if asymmetric else acc * a["other"]


def _oracle(mode: str) -> object:
    def oracle(a: Arrays) -> Arrays:
        scale, out = a["scale"].view(np.float16).astype(np.float32), {}
        for key, bits, asymmetric in forms(a):
            level = levels(a, bits, asymmetric)
            if mode == "s8":
                acc = s8_sums(a["xq"], level, scale) * a["xscale"][:, None]
            else:
                acc = f32_sums(a["x"], level, scale)
            out[key] = _finish(a, acc, asymmetric)
        return out

    return oracle


_F32 = Case(make, _run("f32"), _oracle("f32"))
_S8 = Case(make, _run("s8"), _oracle("s8"))
CASES: dict[str, Case] = {
    "qlinear_f32_digits": _F32,
    "qlinear_f32_strip": _F32,
    "qlinear_s8_strip": _S8,
    "qlinear_f32_pair": _F32,
    "qlinear_s8_pair": _S8,
    "qlinear_finish": _S8,
}
