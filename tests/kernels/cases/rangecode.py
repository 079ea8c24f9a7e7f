"""Cases of rangecode: all lane counts, against a coder with integers of any size."""

from __future__ import annotations

import numpy as np

from cmibq.arrays.rangecode import RangeTables, integer_frequencies
from tests.kernels.cases.base import Arrays, Case

LANES = (1, 3, 4)
SIZES = (1, 2, 2, 3, 7, 16, 256)


def some_tables(rng: np.random.Generator) -> RangeTables:
    """Tables of all kinds: certain, even, nearly certain at either end, many symbols."""
    rows = [rng.dirichlet(np.full(n, 0.5)) for n in SIZES]
    rows += [np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.0, 1.0, 0.0])]
    return RangeTables.of([integer_frequencies(row) for row in rows])


def likely(rng: np.random.Generator, tables: RangeTables, context: np.ndarray) -> np.ndarray:
    """Symbols drawn from their tables."""
    symbols = np.zeros(context.shape, np.uint8)
    for k in range(len(tables.first) - 1):
        here = context == k
        cdf = tables.cdf[tables.first[k] : tables.first[k + 1]]
        draw = rng.integers(0, 65536, here.sum())
        symbols[here] = np.searchsorted(cdf, draw, "right") - 1
    return symbols


def _make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    tables = some_tables(rng)
    context = rng.integers(0, len(tables.first) - 1, (3, cols)).astype(np.int32)
    group = rng.integers(0, 3, rows).astype(np.int32)
    symbols = likely(rng, tables, context[group])
    return {"cdf": tables.cdf, "first": tables.first, "c": context, "g": group, "s": symbols}


def _encode(k: object, a: Arrays) -> Arrays:
    found = {}
    (rows, cols), work = a["s"].shape, k.rangecode_workspace(len(a["c"]), a["s"].shape[1])
    for lanes in LANES:
        out = np.full((lanes, k.rangecode_bytes(rows, cols, lanes)), 77, np.uint8)
        sizes = np.zeros(lanes, np.int64)
        k.rangecode_encode(
            *(a["cdf"], a["first"], a["c"], a["g"], a["s"]),
            *(out, sizes, np.zeros(work // 4, np.uint32)),
        )
        found[f"out{lanes}"] = np.concatenate([out[i, :n] for i, n in enumerate(sizes)])
        found[f"sizes{lanes}"] = sizes
    return found


def shortest(low: int, width: int, bits: int) -> bytes:
    """The shortest bytes that, as a fraction, lie in [low, low + width) / 2**bits."""
    for size in range(bits // 8 + 1):
        rest = bits - 8 * size
        value = (low + (1 << rest) - 1) >> rest
        if value << rest < low + width:
            return value.to_bytes(size, "big")
    raise AssertionError("an interval holds its own lower end")


def coded(pairs: list[tuple[np.ndarray, int]]) -> bytes:
    """Code symbols of tables, one by one."""
    low, width, bits = 0, 2**64 - 1, 64
    for cdf, s in pairs:
        unit = width >> 16
        low += unit * int(cdf[s])
        width = (unit * int(cdf[s + 1]) if s + 1 < len(cdf) else width) - unit * int(cdf[s])
        if width < 2**32:
            low, width, bits = low << 32, width << 32, bits + 32
    return shortest(low, width, bits)


def _oracle(a: Arrays) -> Arrays:
    found = {}
    tables = [a["cdf"][i:j] for i, j in zip(a["first"], a["first"][1:], strict=False)]
    for lanes in LANES:
        dealt: list[list[tuple[np.ndarray, int]]] = [[] for _ in range(lanes)]
        for row, group in zip(a["s"], a["g"], strict=True):
            pairs = [(tables[k], int(s)) for k, s in zip(a["c"][group], row, strict=True)]
            pairs = [pair for pair in pairs if len(pair[0]) > 1]
            for i, pair in enumerate(pairs):
                dealt[i % lanes].append(pair)
        parts = [coded(lane) for lane in dealt]
        found[f"out{lanes}"] = np.frombuffer(b"".join(parts), np.uint8)
        found[f"sizes{lanes}"] = np.array([len(part) for part in parts])
    return found


def _make_coded(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    from cmibq.runtime import native

    a = dict(_make(rng, rows, cols))
    return a | dict(_encode(native().Kernels("scalar"), a))


def _decode(k: object, a: Arrays) -> Arrays:
    found = {}
    work = np.zeros(k.rangecode_workspace(len(a["c"]), a["s"].shape[1]) // 4, np.uint32)
    for lanes in LANES:
        symbols, whole = np.full_like(a["s"], 77), np.zeros(lanes, np.uint8)
        k.rangecode_decode(
            *(a["cdf"], a["first"], a["c"], a["g"], a[f"out{lanes}"], a[f"sizes{lanes}"]),
            *(symbols, whole, work),
        )
        found |= {f"symbols{lanes}": symbols, f"whole{lanes}": whole}
    return found


def _decoded(a: Arrays) -> Arrays:
    symbols = {f"symbols{lanes}": a["s"] for lanes in LANES}
    return symbols | {f"whole{lanes}": np.ones(lanes, np.uint8) for lanes in LANES}


CASES: dict[str, Case] = {
    "rangecode_encode_row": Case(_make, _encode, _oracle),
    "rangecode_decode_row": Case(_make_coded, _decode, _decoded),
}
