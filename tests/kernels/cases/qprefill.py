"""Cases of qprefill: many rows of activations times tiles, against exact FMAs.

All widths with and without zero points for `panel`, some of them for the other kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tests.kernels.cases import qtile
from tests.kernels.cases.base import Arrays, Case, some_nasty
from tests.kernels.cases.sums import f32_sums
from tests.oracles.fma import fma

ROWS = 37


def make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    a = dict(qtile.make(rng, rows, cols))
    cols = a["codes"].shape[1]
    a["x"] = some_nasty(rng, ROWS, cols)
    a["xq"] = rng.integers(-128, 128, (ROWS, cols)).astype(np.int8)
    a["x16"] = rng.normal(size=(ROWS, cols)).astype(np.float32)
    a["x16"][3:8] *= 10.0 ** rng.integers(-9, 9, cols)  # far apart in one block
    a["x16"][8, :1], a["x16"][9:10] = np.nan, 0.0
    a["x16"][16:32] = rng.integers(-9, 10, (16, cols))  # low digits 0 in 16 rows, or in some
    a["x16"][20, ::2] *= 1 + 2.0**-12
    a["x16"][32:] = (a["x16"][32:].view(np.uint32) & 0xFFFF0000).view(np.float32)
    a["xscale"] = rng.random(ROWS).astype(np.float32)
    a["bias"] = rng.normal(size=rows).astype(np.float32)
    return a


def multiply(k: object, a: Arrays, bits: object, asymmetric: bool, form: str) -> NDArray:
    (rows, cols), groups = a["codes"].shape, a["scale"].shape[1]
    tiles = qtile.repacked(k, a, bits, asymmetric)
    one, each = (bits, None) if isinstance(bits, int) else (2, bits)
    width, codes = 16 if form == "digits" else 8, form == "codes"
    size = k.qlinear_workspace(ROWS, rows, cols, groups, one, each, width, 0, int(codes))
    out, work = np.full((ROWS, rows), 77, np.float32), np.full(size, 255, np.uint8)
    weight = (tiles, groups, one, each, int(asymmetric), a["bias"] if asymmetric else None)
    end = (None, None, 0, out, work)
    if codes:
        k.qlinear_s8(a["xq"], a["xscale"], *weight, *end)
    else:
        k.qlinear_f32(a["x16" if form == "digits" else "x"], width, *weight, *end)
    return out


Product = Callable[[Arrays, object, bool, str], NDArray]


def products(call: Product, a: Arrays, what: str) -> Arrays:
    """Return what tests kernel `what`, each by ``call(a, bits, asymmetric, form)``."""
    if what == "row":
        return {"floats": call(a, 4, False, "floats"), "codes": call(a, 4, False, "codes")}
    if what == "tiles":
        one = {**a, "scale": a["scale"][:, :1].copy(), "zero": a["zero"][:, :1].copy()}
        return {"a": call(one, 8, True, "codes"), "s": call(one, 8, False, "codes")}
    if what != "panel":
        form = "digits" if what == "digits" else "codes"
        return {"a": call(a, 8, True, form), "s": call(a, 4, False, form)}
    each = qtile.widths(len(a["codes"])).items()
    kinds = {"a": True, "s": False}.items()
    return {key + kind: call(a, b, yes, "codes") for key, b in each for kind, yes in kinds}


def levels(a: Arrays, bits: object, asymmetric: bool) -> NDArray[np.int64]:
    """Return code - zero [rows, cols]."""
    (_, cols), groups = a["codes"].shape, a["scale"].shape[1]
    out = a["codes"].astype(np.int64)
    for s, b in qtile.strips(a, bits):
        zero = np.repeat(a["zero"][s] & np.uint8(2**b - 1), cols // groups, 1).astype(np.int64)
        out[s] = (out[s] & (2**b - 1)) - (zero if asymmetric else 2 ** (b - 1))
    return out


def product(a: Arrays, bits: object, asymmetric: bool, form: str) -> NDArray:
    x, xscale = token_codes(a["x"]) if form == "floats" else (a["xq"], a["xscale"])
    groups, level = a["scale"].shape[1], levels(a, bits, asymmetric)
    scale = a["scale"].view(np.float16).astype(np.float32)
    if form == "digits":
        acc = f32_sums(a["x16"], level, scale)
        return acc + a["bias"] if asymmetric else acc
    acc = np.zeros((ROWS, len(level)), np.float32)
    for g, part in enumerate(np.split(level.astype(np.float64), groups, 1)):
        dot = np.split(x.astype(np.float64), groups, 1)[g] @ part.T  # integers, exact
        acc = fma(scale[:, g], dot.astype(np.float32), acc)
    with np.errstate(invalid="ignore", over="ignore"):
        acc = acc * xscale[:, None]
    return acc + a["bias"] if asymmetric else acc


def token_codes(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round rows as `cmibq.arrays.codes_token` does; a row with NaN or infinity gets codes 0."""
    high = np.abs(x).max(1, initial=0)
    scale = np.maximum(high, np.float32(1e-5)) / np.float32(127)
    with np.errstate(invalid="ignore"):
        codes = np.rint(np.clip(x / scale[:, None], -128, 127))
    return np.where(np.isfinite(high)[:, None], codes, 0).astype(np.int8), scale


def case(what: str) -> Case:
    def run(k: object, a: Arrays) -> Arrays:
        return products(partial(multiply, k), a, what)

    return Case(make, run, lambda a: products(product, a, what))


KERNELS = ("row", "panel", "block", "tiles", "digits")
CASES: dict[str, Case] = {f"qprefill_{w}": case(w) for w in KERNELS}
