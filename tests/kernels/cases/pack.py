"""Cases of pack: all widths in one go, against a bit-by-bit oracle."""

from __future__ import annotations

import numpy as np

from tests.kernels.cases.base import Arrays, Case

BITS = range(1, 9)


def _make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    return {"c": rng.integers(0, 256, (rows, cols)).astype(np.uint8)}


def stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return each row as a little-endian bit stream, least significant bit first."""
    rows, cols = codes.shape
    ones = (codes[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(ones.reshape(rows, cols * bits), axis=1, bitorder="little")


def _pack(k: object, a: Arrays) -> Arrays:
    out = {}
    for bits in BITS:
        codes = a["c"] & np.uint8(2**bits - 1)
        out[f"b{bits}"] = np.full((len(codes), (codes.shape[1] * bits + 7) // 8), 77, np.uint8)
        k.pack_row(codes, bits, out[f"b{bits}"])
    return out


def _pack_oracle(a: Arrays) -> Arrays:
    return {f"b{b}": stream(a["c"] & np.uint8(2**b - 1), b) for b in BITS}


def _unpack(k: object, a: Arrays) -> Arrays:
    out = {}
    for bits in BITS:
        out[f"b{bits}"] = np.full_like(a["c"], 77)
        k.unpack_row(stream(a["c"] & np.uint8(2**bits - 1), bits), bits, out[f"b{bits}"])
    return out


def _unpack_oracle(a: Arrays) -> Arrays:
    return {f"b{b}": a["c"] & np.uint8(2**b - 1) for b in BITS}


CASES: dict[str, Case] = {
    "pack_u8_row": Case(_make, _pack, _pack_oracle),
    "unpack_u8_row": Case(_make, _unpack, _unpack_oracle),
}
