"""Cases of noise: keys that differ in every part, elements from anywhere in a sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.noise import inverse_normal
from tests.kernels.cases.base import Arrays, Case

_MASK = np.uint64(0xFFFFFFFF)


def philox(c: list[NDArray[np.uint64]], seed: int) -> list[NDArray[np.uint64]]:
    """The ten rounds as published, in uint64."""
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        k0, k1 = (np.uint64(v) for v in k)
        c = [
            (b >> np.uint64(32)) ^ c[1] ^ k0,
            b & _MASK,
            (a >> np.uint64(32)) ^ c[3] ^ k1,
            a & _MASK,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def _make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    key = [int(rng.integers(2**62)), *rng.integers(2**31, size=3).tolist()]
    first = int(rng.integers(2**33)) if cols % 2 else 64 * int(rng.integers(1000))
    return {"key": np.array([*key, first]), "like": np.zeros((rows, cols), np.float32)}


def _run(normal: bool):
    def run(k: object, a: Arrays) -> Arrays:
        out = np.full_like(a["like"], 77)
        k.noise(*a["key"].tolist(), inverse_normal() if normal else None, out)
        return {"out": out}

    return run


def _oracle(normal: bool):
    def oracle(a: Arrays) -> Arrays:
        seed, step, sample, stream, first = a["key"].tolist()
        rows, cols = a["like"].shape
        e = np.arange(first, first + cols, dtype=np.uint64) + np.zeros((rows, 1), np.uint64)
        at = np.uint64(16) * (e // np.uint64(64)) + e % np.uint64(16)
        samples = (sample + np.arange(rows, dtype=np.uint64))[:, None] + np.zeros_like(e)
        rest = [np.full_like(e, v) for v in (step, stream)]
        w = np.choose(
            (e % np.uint64(64) // np.uint64(16)).astype(int), philox([at, samples, *rest], seed)
        )
        if not normal:
            return {"out": (w >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)}
        m = (w & np.uint64(0x7FFFFFFF)) | np.uint64(1)
        k = np.floor(np.log2(m.astype(np.float64))).astype(np.int64)
        place = np.trunc((m / 2.0**k - 1) * 2**23) / 2**19  # 24 bits count
        piece, f = np.floor(place).astype(np.int64), (place % 1).astype(np.float32)
        value, slope, curve = inverse_normal()[:, 16 * k + piece]
        return {"out": np.where(w >> np.uint64(31), -1, 1) * (value + f * (slope + f * curve))}

    return oracle


CASES = {
    "noise_uniform_f32": Case(_make, _run(False), _oracle(False)),
    "noise_normal_f32": Case(_make, _run(True), _oracle(True)),
}
