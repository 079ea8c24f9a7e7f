"""Packed layers as the blocks of ggml, llama.cpp's library: our codes, in another order.

A block holds 32 successive weights of a row and a float16 scale. A group of inputs that is a
multiple of 32 becomes several blocks with one scale, so no weight changes:

| levels ``code - zero`` | kind | bits per weight |
|---|---|---|
| -8 .. 7: symmetric to 4 bits, zero points to 3 bits | Q4_0 | 4.5 |
| 0 .. 15 and a minimum: zero points at 4 bits | Q4_1 | 5 |
| -16 .. 15: symmetric 5 bits (zero points at 4 bits, if wished) | Q5_0 | 5.5 |
| -128 .. 127: symmetric to 8 bits, zero points to 7 bits | Q8_0 | 8.5 |

Q4_1 stores the minimum ``-zero * scale`` as float16, which rounds it by at most 0.004 steps. What
fits nowhere (zero points at 8 bits, groups of 8, 16 or 24 inputs) is rounded anew to Q8_0.

References:
    ggml, ``ggml-common.h`` (block_q4_0 and the others).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cmibq.nn import PackedLinear
from cmibq.ops.pack import unpack
from cmibq.strips import runs

__all__ = ["BLOCK", "Blocks", "encode_blocks", "pick_kind"]

BLOCK: Final = 32
_RANGES: Final = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-128, 127)}
Bytes = NDArray[np.uint8]


class Blocks(NamedTuple):
    """A weight as ggml has it.

    Args:
        kind: name of its ``GGMLQuantizationType``.
        data: uint8 [N, bytes of a row], or float16 [N, K] for kind F16.
        exact: every weight is what it was.
        anew: the weight had to be rounded anew.
    """

    kind: str
    data: NDArray[Any]
    exact: bool
    anew: bool = False


def pick_kind(bits: int, symmetric: bool, *, exact: bool = False) -> str | None:
    """Return the smallest kind of block for codes of a width, or None if there is none.

    Args:
        bits: width of the codes.
        symmetric: whether there are no zero points.
        exact: take Q5_0 where Q4_1 would round the minima.

    Example:
        >>> pick_kind(4, True), pick_kind(4, False), pick_kind(4, False, exact=True)
        ('Q4_0', 'Q4_1', 'Q5_0')
        >>> pick_kind(3, False), pick_kind(8, True), pick_kind(8, False)
        ('Q4_0', 'Q8_0', None)
    """
    half, full = 1 << (bits - 1), (1 << bits) - 1
    low, high = (-half, half - 1) if symmetric else (-full, full)
    if bits == 4 and not symmetric and not exact:
        return "Q4_1"
    fits = (kind for kind, (a, b) in _RANGES.items() if a <= low and high <= b)
    return next(fits, None)


def _rows(part: Tensor, layer: PackedLinear, cols: int) -> NDArray[np.uint8]:
    """Return the codes of a packed matrix as uint8 [N, cols]."""
    outs = layer.out_features
    if isinstance(layer.bits, int):
        return unpack(part, bits=layer.bits, cols=cols).numpy()
    found, at = [], 0
    for start, stop, bits in runs(layer.bits, outs):
        size = (stop - start) * -(-cols * bits // 8)
        piece = part[at : at + size].view(stop - start, -1)
        found.append(unpack(piece, bits=bits, cols=cols).numpy())
        at += size
    return np.concatenate(found)


def _zeros(layer: PackedLinear, groups: int) -> NDArray[np.uint8]:
    """Return the zero point of every group: uint8 [N, G]."""
    if layer.zeros is not None:
        return _rows(layer.zeros, layer, groups)
    made = np.empty((layer.out_features, groups), np.uint8)
    for start, stop, bits in runs(layer.bits, layer.out_features):
        made[start:stop] = 1 << (bits - 1)
    return made


def _halves(levels: Bytes) -> Bytes:
    """Pack blocks [n, 32] of 4 bits: the first 16 in the low halves of 16 bytes."""
    return levels[:, :16] | (levels[:, 16:] << np.uint8(4))


def _bytes(x: NDArray[np.float16]) -> Bytes:
    return x.reshape(-1, 1).view(np.uint8)


def _pack(kind: str, signed: NDArray[np.int16], scale: NDArray[np.float16]) -> Bytes:
    """Return blocks of levels [n, 32] with a scale each."""
    if kind == "Q8_0":
        return np.concatenate([_bytes(scale), signed.astype(np.int8).view(np.uint8)], 1)
    levels = (signed - _RANGES[kind][0]).astype(np.uint8)
    if kind == "Q4_0":
        return np.concatenate([_bytes(scale), _halves(levels)], 1)
    high = np.packbits(levels >> 4, axis=1, bitorder="little")
    return np.concatenate([_bytes(scale), high, _halves(levels & np.uint8(15))], 1)


def _anew(layer: PackedLinear) -> Blocks:
    """Round the weight to Q8_0, or to float16 where rows are no whole blocks."""
    weight = layer.dequantize().numpy()
    if weight.shape[1] % BLOCK:
        half = weight.astype(np.float16)
        return Blocks("F16", half, bool((half.astype(np.float32) == weight).all()), anew=True)
    rows = weight.reshape(-1, BLOCK)
    top = np.abs(rows).max(1, keepdims=True)
    scale = (top / 127).astype(np.float16)
    step = np.where(scale == 0, 1, scale.astype(np.float32))
    levels = np.clip(np.rint(rows / step), -127, 127).astype(np.int16)
    data = _pack("Q8_0", levels, scale.ravel())
    exact = bool((levels * scale.astype(np.float32) == rows).all())
    return Blocks("Q8_0", data.reshape(len(weight), -1), exact, anew=True)


def encode_blocks(layer: PackedLinear, *, exact: bool = False) -> Blocks:
    """Return a packed layer as blocks of ggml.

    Args:
        layer: on the CPU.
        exact: see `pick_kind`.
    """
    kinds = {
        pick_kind(bits, layer.symmetric, exact=exact)
        for _, _, bits in runs(layer.bits, layer.out_features)
    }
    if None in kinds or layer.group_size % BLOCK:
        return _anew(layer)
    order = [*_RANGES]
    kind = "Q4_1" if kinds == {"Q4_1"} else ""
    if not kind:
        names = ["Q5_0" if name == "Q4_1" else str(name) for name in kinds]
        kind = max(names, key=order.index)
    outs, cols = layer.out_features, layer.in_features
    scales = layer.scales.numpy()
    zero = _zeros(layer, scales.shape[1])
    times = layer.group_size // BLOCK
    codes = _rows(layer.qweight, layer, cols).reshape(-1, BLOCK)
    scale, zero = np.repeat(scales, times, 1).ravel(), np.repeat(zero, times, 1).reshape(-1, 1)
    if kind == "Q4_1":
        wide = -(zero[:, 0].astype(np.float32) * scale.astype(np.float32))
        low = wide.astype(np.float16)
        data = np.concatenate([_bytes(scale), _bytes(low), _halves(codes)], 1)
        return Blocks(kind, data.reshape(outs, -1), bool((low.astype(np.float32) == wide).all()))
    data = _pack(kind, codes.astype(np.int16) - zero, scale)
    return Blocks(kind, data.reshape(outs, -1), True)
