"""Whole weights as packed codes, scales and zero points: one width, or one for every 16 outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmibq.arrays.codes import codes, decode
from cmibq.arrays.pack import pack, unpack
from cmibq.arrays.qparams import qparams, qparams_mse
from cmibq.memory import empty
from cmibq.strips import Bits, check_bits, packed_bytes, runs, single

__all__ = ["PackedWeight", "pack_weight", "unpack_weight"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


class PackedWeight(NamedTuple):
    """A weight [N, K] as packages store it (docs/formats.md), in the order `qgemm` takes it."""

    packed: U8
    """uint8 [N, ceil(K * bits / 8)]; with mixed bits [bytes], the rows one after the other."""
    scale: NDArray[np.float16]
    """float16 [N, G]."""
    zero: U8 | None
    """uint8 [N, ceil(G * bits / 8)], or [bytes] with mixed bits; None if symmetric."""


def _buffer(bits: Bits, outs: int, cols: int) -> U8:
    """Return memory for packed rows in their canonical shape."""
    flat = empty((packed_bytes(bits, outs, cols),), np.uint8)
    one = single(bits)
    return flat if one is None else flat.reshape(outs, (cols * one + 7) // 8)


def _parts(buffer: U8, bits: Bits, outs: int, cols: int) -> Iterator[U8]:
    """Yield the rows of every run of one width as a matrix."""
    flat, at = buffer.reshape(-1), 0
    for start, stop, width in runs(bits, outs):
        row = (cols * width + 7) // 8
        yield flat[at : at + (stop - start) * row].reshape(stop - start, row)
        at += (stop - start) * row


def pack_weight(
    w: F32, *, bits: Bits, group_size: int = -1, symmetric: bool = False, n_grid: int = 0
) -> PackedWeight:
    """Quantise a weight and pack it.

    Args:
        w: float32 [N, K], C-contiguous, finite.
        bits: 2..8, or one width for every 16 outputs (mixed bits): ``ceil(N / 16)`` of them.
        group_size: inputs that share a scale, a divisor of K; 0 or less: whole rows.
        symmetric: zero point ``2**(bits - 1)`` everywhere, none is stored.
        n_grid: 0 takes ranges from minimum to maximum; more tries as many shrunken ranges for the
            least squared error (`qparams_mse`).

    Returns:
        `PackedWeight`.

    Raises:
        ConfigError: widths out of range, or another number of them.
        ValueError: a group size that does not divide, a weight that is not contiguous or finite.

    Example:
        >>> from cmibq.arrays import qgemm
        >>> w = np.repeat(np.float32([[-1, 0, 1, 2]]), 20, 0)
        >>> packed = pack_weight(w, bits=(2, 4))
        >>> packed.packed.shape, packed.scale.shape
        ((24,), (20, 1))
        >>> qgemm(np.ones((1, 4), np.float32), *packed, bits=(2, 4))[0, ::19]
        array([2.       , 1.9995117], dtype=float32)
    """
    if w.ndim != 2 or not w.flags.c_contiguous:
        raise ValueError(f"pack_weight: w is {w.shape}; give a C-contiguous matrix [N, K]")
    outs, cols = w.shape
    size = group_size if group_size > 0 else max(cols, 1)
    if cols % size:
        raise ValueError(f"pack_weight: group_size is {group_size}; it must divide {cols} inputs")
    check_bits(bits, outs)
    groups, m = cols // size, w.reshape(outs * (cols // size), size)
    scale = np.empty((outs, groups), np.float16)
    packed, zero = _buffer(bits, outs, cols), _buffer(bits, outs, groups)
    places = (_parts(packed, bits, outs, cols), _parts(zero, bits, outs, groups))
    for (start, stop, width), to, zero_to in zip(runs(bits, outs), *places, strict=True):
        part = m[start * groups : stop * groups]
        if n_grid:
            steps, zeros, _ = qparams_mse(part, width, n_grid=n_grid, symmetric=symmetric)
        else:
            steps, zeros = qparams(part, width, symmetric=symmetric)
        pack(codes(part, steps, zeros, bits=width).reshape(stop - start, cols), bits=width, out=to)
        pack(zeros.reshape(stop - start, groups), bits=width, out=zero_to)
        scale[start:stop] = steps.reshape(stop - start, groups)
    return PackedWeight(packed, scale, None if symmetric else zero)


def unpack_weight(
    packed: U8,
    scale: NDArray[np.float16],
    zero: U8 | None = None,
    *,
    bits: Bits,
    cols: int,
    out: F32 | None = None,
) -> F32:
    """Return the values of a packed weight: ``(code - zero) * scale``.

    Args:
        packed: codes of `pack_weight`.
        scale: float16 [N, G], its scales.
        zero: its zero points; None if symmetric.
        bits: 2..8, or one width for every 16 outputs.
        cols: inputs K.
        out: float32 [N, K] to write to.

    Returns:
        float32 [N, K]: `out` or a new array.

    Raises:
        ConfigError: widths out of range, or another number of them.
        ValueError: bytes of another number.

    Example:
        >>> w = np.repeat(np.float32([[-1, 0, 1, 2]]), 20, 0)
        >>> packed = pack_weight(w, bits=(2, 4))
        >>> unpack_weight(*packed, bits=(2, 4), cols=4)[:1]
        array([[-1.,  0.,  1.,  2.]], dtype=float32)
    """
    outs, groups = scale.shape
    check_bits(bits, outs)
    for name, given, count in (("packed", packed, cols), ("zero", zero, groups)):
        want = packed_bytes(bits, outs, count)
        if given is not None and given.size != want:
            raise ValueError(f"unpack_weight: {name} has {given.size} bytes, expected {want}")
    out = empty((outs, cols)) if out is None else out
    zeros = None if zero is None else list(_parts(zero, bits, outs, groups))
    places = zip(runs(bits, outs), _parts(packed, bits, outs, cols), strict=True)
    for at, ((start, stop, width), part) in enumerate(places):
        level = unpack(part, bits=width, cols=cols).reshape(
            (stop - start) * groups, cols // max(groups, 1)
        )
        point = np.full(len(level), 1 << (width - 1), np.uint8)
        if zeros is not None:
            point = unpack(zeros[at], bits=width, cols=groups).reshape(-1)
        steps = scale[start:stop].astype(np.float32).reshape(-1)
        decode(level, steps, point, out=out[start:stop].reshape(level.shape))
    return out
