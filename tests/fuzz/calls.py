"""One maker of random valid calls per public function, with its oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cmibq import arrays
from tests.fuzz.base import Call, op
from tests.fuzz.draw import Rng, matrix, positive, size, spread
from tests.fuzz.products import attention, gemm, gemm_s8, qgemm

__all__ = ["CALLS"]

Result = tuple[np.ndarray, ...]


def grids(rng: Rng, n: int, *, log2: bool = False) -> dict[str, np.ndarray]:
    bits = rng.integers(1, 9, n)
    lo = 1 - 2.0 ** np.minimum(bits, 6) if log2 else -(2.0 ** (bits - 1))
    hi = np.zeros(n) if log2 else 2.0 ** (bits - 1) - 1
    return {"scale": positive(rng, n), "lo": lo.astype(np.float32), "hi": hi.astype(np.float32)}


def _rounding(name: str, module: str, reference: str) -> Callable[[Rng], Call]:
    def make(rng: Rng) -> Call:
        axis = int(rng.integers(2))
        x = spread(rng, matrix(rng, size(rng), size(rng), special=True))
        given = {"x": x, **grids(rng, x.shape[axis], log2="log2" in name), "axis": axis}
        oracle = op(module, reference)
        return Call(getattr(arrays, name), given, lambda **k: oracle(*k.values()), out=0)

    return make


def backward(rng: Rng) -> Call:
    axis = int(rng.integers(2))
    x = matrix(rng, size(rng), size(rng))
    given = {"g": matrix(rng, *x.shape), "x": x, **grids(rng, x.shape[axis]), "axis": axis}
    oracle, total = op("fakequant", "reference_backward"), np.abs(given["g"]).sum(1 - axis) * 130
    return Call(
        arrays.fakequant_backward, given,
        lambda **k: [t.double() for t in oracle(*(v.astype(np.float64) if i < 5 else v
                                                  for i, v in enumerate(k.values())))],
        np.float64(total.max(initial=0)) * 1e-5,
    )  # fmt: skip


def reduce(rng: Rng) -> Call:
    name, axis = str(rng.choice(["minmax", "absmax", "abssum"])), int(rng.integers(2))
    x = matrix(rng, size(rng, 1), size(rng, 1), special=name != "abssum")
    oracle = op("reduce", f"reference_{name}")
    between = (None,) if name == "abssum" else ()
    near = float(np.abs(x).sum()) * 1e-13 if name == "abssum" else 0.0
    return Call(
        getattr(arrays, name), {"x": x, "axis": axis}, lambda x, axis: oracle(x, *between, axis),
        near, None if name == "minmax" else 0,
    )  # fmt: skip


def qparams(rng: Rng) -> Call:
    symmetric, zero, half = (bool(v) for v in rng.integers(0, 2, 3))
    bits, mse = int(rng.integers(2, 9)), rng.random() < 0.3
    x = np.clip(matrix(rng, size(rng), size(rng, 1)), -6e4, 6e4)  # float16 scales
    given = {"x": x, "bits": bits, "symmetric": symmetric, "zero_in_range": zero,
             "half_scale": half}  # fmt: skip
    mode, rest = symmetric + 2 * zero + 4 * half, (20, 0.5) if mse else ()
    oracle = op("qparams", "reference_mse" if mse else "reference")
    # Nearly equal ranges may tie in another order of summation.
    near = np.inf if mse else 0.0
    name = "qparams_mse" if mse else "qparams"
    return Call(getattr(arrays, name), given, lambda x, bits, **k: oracle(x, bits, mode, *rest),
                near)  # fmt: skip


def coded(rng: Rng) -> Call:
    bits = int(rng.integers(1, 9))
    x = spread(rng, matrix(rng, size(rng), size(rng), special=True))
    zero = rng.integers(0, 2**bits, len(x)).astype(np.uint8)
    given = {"x": x, "scale": positive(rng, len(x)), "zero": zero, "bits": bits}
    oracle = op("codes", "reference")
    return Call(arrays.codes, given, lambda **k: oracle(*k.values()), out=0)


def decode(rng: Rng) -> Call:
    codes = rng.integers(0, 256, (size(rng), size(rng))).astype(np.uint8)
    zero = rng.integers(0, 256, len(codes)).astype(np.uint8)
    given = {"codes": codes, "scale": positive(rng, len(codes)), "zero": zero}
    oracle = op("codes", "reference_decode")
    return Call(arrays.decode, given, lambda **k: oracle(*k.values()), out=0)


def token(rng: Rng) -> Call:
    x = matrix(rng, size(rng), size(rng, 1))
    if rng.random() < 0.5:
        oracle = op("codes", "reference_token")
        return Call(arrays.codes_token, {"x": x}, oracle and (lambda x: oracle(x)), out=0)
    bits, rounded = int(rng.integers(2, 17)), op("codes", "reference_fakequant_token")
    given = {"x": x, "bits": bits}
    return Call(arrays.fakequant_token, given, lambda x, bits: rounded(x, bits), out=0)


def pack(rng: Rng) -> Call:
    bits, rows, cols = int(rng.integers(1, 9)), size(rng), size(rng)
    codes = rng.integers(0, 2**bits, (rows, cols)).astype(np.uint8)
    oracle = op("pack", "reference")
    if rng.random() < 0.5:
        return Call(arrays.pack, {"codes": codes, "bits": bits}, lambda **k: oracle(*k.values()),
                    out=0)  # fmt: skip
    packed = oracle(codes, bits).numpy()
    given = {"packed": packed, "bits": bits, "cols": cols}
    return Call(arrays.unpack, given, lambda **k: codes, out=0)


def scaleloss(rng: Rng) -> Call:
    tokens, rows, k = size(rng, 0, 40), size(rng, 0, 40), 8 * int(rng.integers(1, 9))
    given = {"x": rng.normal(size=(tokens, k)).astype(np.float32),
             "w": rng.normal(size=(rows, k)).astype(np.float32),
             "s": rng.uniform(0.5, 2, (int(rng.integers(0, 5)), k)).astype(np.float32),
             "bits": int(rng.integers(2, 9)), "group_size": int(rng.choice([0, 8, k])),
             "symmetric": bool(rng.integers(2)),
             "loss": str(rng.choice(["mae", "mse"]))}  # fmt: skip

    def oracle(x: Any, w: Any, s: Any, bits: int, group_size: int, symmetric: bool, loss: str,
               ) -> Any:  # fmt: skip
        token = np.ones(len(x))
        rest = (bits, group_size, symmetric + 6, 0, 1 + (loss == "mse"))
        return op("scaleloss", "reference")(x, w, token, s, *rest)

    return Call(arrays.scaleloss, given, oracle, 1e-4 * tokens * rows * k)


def bits_of(rng: Rng) -> Call:
    x = matrix(rng, size(rng), size(rng, 1))
    if rng.random() < 0.5:
        b = rng.uniform(2, 8, x.shape).astype(np.float32)
        total = int(rng.integers(2 * x.shape[1], 8 * x.shape[1] + 1))
        oracle = op("alloc", "reference_round")
        given = {"b": b, "lo": 2, "hi": 8, "total": total}
        return Call(arrays.round_bits, given, lambda **k: oracle(*k.values()), out=0)
    given = {"x": x, "target": float(rng.uniform(2, 8)), "lo": 2.0, "hi": 8.0}
    wide = op("alloc", "reference_project")
    return Call(arrays.project_bits, given, lambda x, **k: wide(x, None, *k.values()),
                1e-6 * float(np.abs(x).max(initial=10)), 0)  # fmt: skip


def percentile(rng: Rng) -> Call:
    x = matrix(rng, size(rng), size(rng, 1), special=True)
    q = rng.uniform(0, 100, int(rng.integers(1, 5)))
    return Call(arrays.percentile, {"x": x, "q": q},
                lambda x, q: np.percentile(x.astype(np.float64), q, axis=1).T)  # fmt: skip


def histogram(rng: Rng) -> Call:
    def count(x: np.ndarray, size: int) -> Result:
        h = arrays.Histogram(size)
        for part in np.array_split(x, 3) if isinstance(x, np.ndarray) and x.ndim else [x]:
            h.update(part)
        return h.counts, h.edges

    def oracle(x: np.ndarray, size: int) -> Result:
        _, edges = count(x, size)
        return np.histogram(x.astype(np.float64), edges)[0], edges

    x = matrix(rng, size(rng, 1), special=True)
    return Call(count, {"x": x, "size": int(rng.choice([2, 3, 64, 2048]))}, oracle)


def klclip(rng: Rng) -> Call:
    x = matrix(rng, size(rng), size(rng), special=True)
    bits = int(rng.integers(2, 9))
    return Call(arrays.klclip, {"x": x, "bits": bits, "size": int(rng.choice([256, 2048]))}, None)


def search(rng: Rng) -> Call:
    tokens, k = size(rng, 1, 130), 8 * int(rng.integers(1, 5))
    given = {"x": matrix(rng, tokens, k), "w": matrix(rng, size(rng, 1, 33), k), "bits": 3,
             "group_size": 8, "effort": str(rng.choice(["full", "race"])),
             "answer_mask": rng.random(tokens) < 0.5 if rng.random() < 0.5 else None}  # fmt: skip

    def call(**k: Any) -> Result:
        found = arrays.search_scales(**k)
        assert np.isfinite(found.scales).all()
        return (found.losses[[found.best_index]],)

    def best(**k: Any) -> Result:
        return (np.nanmin(arrays.search_scales(**(k | {"effort": "full"})).losses, keepdims=True),)

    worst = float(np.nanmax(arrays.search_scales(**(given | {"effort": "full"})).losses))
    return Call(call, given, best, 0.2 * worst)


CALLS: dict[str, Callable[[Rng], Call]] = {
    "fakequant": _rounding("fakequant", "fakequant", "reference"),
    "fakequant_log2": _rounding("fakequant_log2", "grids", "reference_log2"),
    "fakequant_torch_compat": _rounding("fakequant_torch_compat", "grids", "reference_compat"),
    **{f.__name__: f for f in (backward, reduce, qparams, coded, decode, token, pack, gemm)},
    **{f.__name__: f for f in (gemm_s8, qgemm, attention, scaleloss, bits_of, percentile)},
    **{f.__name__: f for f in (histogram, klclip, search)},
}  # fmt: skip
