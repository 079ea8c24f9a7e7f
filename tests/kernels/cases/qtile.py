"""Cases of qtile: the tiles of a packed weight, against an element-by-element layout."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.kernels.cases.base import Arrays, Case
from tests.kernels.cases.pack import stream
from tests.kernels.cases.qgemm import BITS
from tests.kernels.cases.sums import groups_of

PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
MIXED = (2, 8, 4, 3, 5, 7, 6)


def make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    cols = min(cols, 2048)
    groups = groups_of(cols)
    return {
        "codes": rng.integers(0, 256, (rows, cols)).astype(np.uint8),
        "zero": rng.integers(0, 256, (rows, groups)).astype(np.uint8),
        "scale": (rng.random((rows, groups)) + 0.01).astype(np.float16).view(np.uint16),
    }


def widths(rows: int) -> dict[str, NDArray[np.uint8] | int]:
    """Return the widths to try: every one alone, and all of them in turn, strip by strip."""
    strips = -(-rows // 16)
    return {f"b{b}": b for b in BITS} | {"mixed": np.resize(np.array(MIXED, np.uint8), strips)}


def layout(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return the tiles of a strip of 16 rows, tile by tile, vector by vector."""
    padded = np.zeros((16, -(-codes.shape[1] // 64) * 64), np.uint8)
    padded[: len(codes), : codes.shape[1]] = codes
    out = []
    for k0 in range(0, padded.shape[1], 64):
        v = padded[:, k0 : k0 + 64].reshape(16, 16, 4).swapaxes(0, 1).reshape(16, 64)
        low = 0
        for w in PLANES[bits]:
            part = (v >> low) & (2**w - 1)
            for j in range(2 * w):
                inside = range(8 // w)
                out.append(sum(part[8 // w * j + i].astype(np.int64) << (w * i) for i in inside))
            low += w
    return np.array(out, np.uint8).ravel()


def strips(a: Arrays, bits: object) -> list[tuple[slice, int]]:
    rows = len(a["codes"])
    each = [bits] * (-(-rows // 16)) if isinstance(bits, int) else [int(b) for b in bits]
    return [(slice(16 * i, 16 * i + 16), b) for i, b in enumerate(each)]


def canonical(a: Arrays, bits: object) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the streams of the codes and of the zero points, row after row."""
    both = []
    for name in ("codes", "zero"):
        parts = [stream(a[name][s] & np.uint8(2**b - 1), b).ravel() for s, b in strips(a, bits)]
        both.append(np.concatenate([*parts, np.empty(0, np.uint8)]))
    return both[0], both[1]


def repacked(k: object, a: Arrays, bits: object, asymmetric: bool) -> NDArray[np.uint8]:
    rows, cols = a["codes"].shape
    packed, zero = canonical(a, bits)
    one, each = (bits, None) if isinstance(bits, int) else (2, bits)
    size = k.qgemm_tiles_bytes(rows, cols, a["scale"].shape[1], one, int(asymmetric), each)
    tiles = np.full(size, 77, np.uint8)
    k.qgemm_repack(packed, a["scale"], zero if asymmetric else None, cols, one, each, tiles)
    return tiles


def _pack(k: object, a: Arrays) -> Arrays:
    out = {}
    for key, bits in widths(len(a["codes"])).items():
        out[key + "a"] = repacked(k, a, bits, True)
        out[key + "s"] = repacked(k, a, bits, False)
    return out


def _pack_oracle(a: Arrays) -> Arrays:
    out = {}
    groups = a["scale"].shape[1]
    for key, bits in widths(len(a["codes"])).items():
        both: tuple[list, list] = ([], [])
        for s, b in strips(a, bits):
            scale, zero = np.zeros((groups, 16), np.uint16), np.zeros((groups, 16), np.uint8)
            n = len(a["scale"][s])
            scale[:, :n], zero[:, :n] = a["scale"][s].T, (a["zero"][s] & np.uint8(2**b - 1)).T
            tiles = layout(a["codes"][s] & np.uint8(2**b - 1), b)
            for parts, with_zero in zip(both, (True, False), strict=True):
                head = [scale.view(np.uint8).ravel()] + [zero.ravel()] * with_zero
                size = sum(len(h) for h in head)
                parts += [*head, np.zeros(-size % 64, np.uint8), tiles]
        for name, parts in zip("as", both, strict=True):
            out[key + name] = np.concatenate([*parts, np.empty(0, np.uint8)])
    return out


def _unpack(k: object, a: Arrays) -> Arrays:
    out = {}
    for key, bits in widths(len(a["codes"])).items():
        tiles = repacked(k, a, bits, True)
        packed, zero = (np.full_like(p, 77) for p in canonical(a, bits))
        scale = np.full_like(a["scale"], 77)
        one, each = (bits, None) if isinstance(bits, int) else (2, bits)
        k.qgemm_unrepack(tiles, a["codes"].shape[1], one, each, packed, scale, zero)
        out |= {key: packed, key + "scale": scale, key + "zero": zero}
    return out


def _unpack_oracle(a: Arrays) -> Arrays:
    out = {}
    for key, bits in widths(len(a["codes"])).items():
        packed, zero = canonical(a, bits)
        out |= {key: packed, key + "scale": a["scale"], key + "zero": zero}
    return out


CASES: dict[str, Case] = {
    "qtile_pack_u8": Case(make, _pack, _pack_oracle),
    "qtile_unpack_u8": Case(make, _unpack, _unpack_oracle),
}
