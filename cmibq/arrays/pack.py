"""Dense bit packing of codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.memory import empty
from cmibq.runtime import kernels

__all__ = ["pack", "unpack"]

U8 = NDArray[np.uint8]


def pack(codes: U8, *, bits: int, out: U8 | None = None) -> U8:
    """Pack codes densely, each row padded to a byte with zero bits.

    Args:
        codes: uint8 [R, C], all below ``2**bits``.
        bits: 1..8.
        out: uint8 [R, ceil(C * bits / 8)] to write to.

    Returns:
        uint8 [R, ceil(C * bits / 8)]: a little-endian bit stream, least significant bit first.

    Raises:
        ValueError: bits out of range, a code that does not fit.

    Example:
        >>> pack(np.uint8([[1, 2, 3]]), bits=4)
        array([[33,  3]], dtype=uint8)
    """
    if codes.ndim != 2:
        raise ValueError(f"pack: codes has {codes.ndim} dimensions, expected 2; reshape it first")
    if out is None:
        out = empty((len(codes), (codes.shape[-1] * bits + 7) // 8), np.uint8)
    kernels().pack_row(codes, bits, out)
    return out


def unpack(packed: U8, *, bits: int, cols: int, out: U8 | None = None) -> U8:
    """Return the codes that `pack` packed.

    Args:
        packed: uint8 [R, ceil(cols * bits / 8)].
        bits: 1..8.
        cols: codes per row.
        out: uint8 [R, cols] to write to.

    Returns:
        uint8 [R, cols].

    Raises:
        ValueError: bits out of range, a row of another size.

    Example:
        >>> unpack(np.uint8([[33, 3]]), bits=4, cols=3)
        array([[1, 2, 3]], dtype=uint8)
    """
    out = empty((len(packed), cols), np.uint8) if out is None else out
    kernels().unpack_row(packed, bits, out)
    return out
