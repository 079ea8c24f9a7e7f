"""Making a packed weight: grids, codes and bits of float32 [4096, 4096], groups of 128, 4 bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from benchmarks.case import Call, Case, Factory, Limit
from benchmarks.operands import matrix
from cmibq import arrays
from cmibq.ops.codes import reference as reference_codes
from cmibq.ops.codes import reference_decode
from cmibq.ops.qparams import reference as reference_grids

__all__ = ["CASES"]

N, GROUP, BITS = 4096, 128, 4
ELEMENTS = N * N


@lru_cache(maxsize=1)
def operands() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return groups as rows, their step sizes and zero points, and their codes."""
    x = matrix(N, N).reshape(-1, GROUP)
    scale, zero = arrays.qparams(x, BITS)
    return x, scale, zero, arrays.codes(x, scale, zero, bits=BITS)


def grids(threads: int) -> Call:
    return partial(arrays.qparams, operands()[0], BITS)


def codes(threads: int) -> Call:
    x, scale, zero, known = operands()
    return partial(arrays.codes, x, scale, zero, bits=BITS, out=np.empty_like(known))


def decode(threads: int) -> Call:
    x, scale, zero, known = operands()
    return partial(arrays.decode, known, scale, zero, out=np.empty_like(x))


def pack(threads: int) -> Call:
    known = operands()[3].reshape(N, N)
    return partial(arrays.pack, known, bits=BITS, out=arrays.pack(known, bits=BITS))


def unpack(threads: int) -> Call:
    known = operands()[3].reshape(N, N)
    packed = arrays.pack(known, bits=BITS)
    return partial(arrays.unpack, packed, bits=BITS, cols=N, out=np.empty_like(known))


def eager(reference: Callable[..., Any], which: tuple[int, ...], *rest: object) -> Factory:
    """Return the formula in plain torch on the same operands."""

    def make(threads: int) -> Call:
        import torch

        return partial(reference, *(torch.from_numpy(operands()[n]) for n in which), *rest)

    return make


def case(name: str, ours: Factory, size: float, peers: dict[str, Factory]) -> Case:
    """Return a case that moves `size` bytes per element."""
    limit: Limit = lambda p: p.read64(size * ELEMENTS)  # noqa: E731
    return Case(
        axis="weights",
        name=name,
        ours=ours,
        peers=peers,
        limit=limit,
        note="4096x4096, groups of 128, 4 bits; limit: the bytes read and written, at the speed of "
        "reading 64 MiB",
        flops=4.0 * ELEMENTS,
        moved=size * ELEMENTS,
        quick=name == "codes",
    )


def numpy_pack(threads: int) -> Call:
    known = operands()[3].reshape(N, -1, 2)
    return lambda: known[..., 0] | (known[..., 1] << 4)


def numpy_unpack(threads: int) -> Call:
    packed = arrays.pack(operands()[3].reshape(N, N), bits=BITS)
    return lambda: np.stack((packed & 15, packed >> 4), -1)


CASES = [
    case("grids", grids, 4, {"torch eager": eager(reference_grids, (0,), BITS, 6)}),
    case("codes", codes, 5, {"torch eager": eager(reference_codes, (0, 1, 2), BITS)}),
    case("decode", decode, 5, {"torch eager": eager(reference_decode, (3, 1, 2))}),
    case("pack", pack, 1.5, {"NumPy": numpy_pack}),
    case("unpack", unpack, 1.5, {"NumPy": numpy_unpack}),
]
