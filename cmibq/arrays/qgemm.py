"""Activations times packed low-bit weights, without unpacking the weights as a whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.memory import empty
from cmibq.runtime import kernels
from cmibq.strips import Bits, check_bits, single

__all__ = ["qgemm", "qgemm_s8"]

F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
S8 = NDArray[np.int8]
U8 = NDArray[np.uint8]


def _buffers(
    x: F32 | S8, packed: U8, scale: F16, bits: int, out: F32 | None
) -> tuple[NDArray[np.uint16], F32, U8]:
    """Return the float16 scales as the kernels take them, the result and the workspace."""
    if scale.dtype != np.float16:
        raise TypeError(f"qgemm: scale has dtype {scale.dtype}, expected float16")
    for name, array in (("x", x), ("packed", packed), ("scale", scale)):
        if array.ndim != 2:
            raise ValueError(f"qgemm: {name} has {array.ndim} dimensions, expected 2")
    sizes = (len(x), len(packed), x.shape[-1], scale.shape[-1])
    out = np.empty(sizes[:2], np.float32) if out is None else out
    return scale.view(np.uint16), out, np.empty(kernels().qgemm_workspace(*sizes, bits), np.uint8)


def _mixed(
    inputs: tuple[F32] | tuple[S8, F32],
    packed: U8,
    scale: F16,
    zero: U8 | None,
    bias: F32 | None,
    bits: Bits,
    out: F32 | None,
) -> F32:
    """Multiply by a weight of mixed bits: its tiles are made as a layer in memory has them."""
    if scale.dtype != np.float16:
        raise TypeError(f"qgemm: scale has dtype {scale.dtype}, expected float16")
    core, cols, (outs, groups) = kernels(), inputs[0].shape[-1], scale.shape
    strips = np.array(check_bits(bits, outs), np.uint8)
    form = (outs, cols, groups, 2)
    tiles = empty((core.qgemm_tiles_bytes(*form, zero is not None, strips),), np.uint8)
    core.qgemm_repack(packed, scale.view(np.uint16), zero, cols, 2, strips, tiles)
    rows, given = len(inputs[0]), len(inputs) == 2
    size = core.qlinear_workspace(rows, *form, strips, 16, 0, given)
    out = np.empty((rows, outs), np.float32) if out is None else out
    work, asymmetric = np.empty(size, np.uint8), zero is not None
    if len(inputs) == 2:
        x, xscale = inputs
        core.qlinear_s8(
            x, xscale, tiles, groups, 2, strips, asymmetric, bias, None, None, 0, out, work
        )
    else:
        core.qlinear_f32(
            inputs[0], 16, tiles, groups, 2, strips, asymmetric, bias, None, None, 0, out, work
        )
    return out


def qgemm(
    x: F32,
    packed: U8,
    scale: F16,
    zero: U8 | None = None,
    bias: F32 | None = None,
    *,
    bits: Bits,
    out: F32 | None = None,
) -> F32:
    """Multiply float activations by a packed weight: ``x @ w.T + bias``.

    Element k of output row n of the weight is ``(code - zero) * scale`` of its group. Sums of
    products are exact within blocks of at most 256 inputs (docs/numerics.md). A result does not
    depend on the other rows of `x`, on the thread count or on the ISA.

    Args:
        x: float32 [M, K].
        packed: uint8 [N, ceil(K * bits / 8)], codes as `pack` packs them; with mixed bits [bytes],
            the rows one after the other (`zero` likewise), as `pack_weight` makes them.
        scale: float16 [N, G], > 0; G equal groups of successive inputs, multiples of 8
            or one.
        zero: uint8 [N, ceil(G * bits / 8)], zero points packed like the codes; None means
            ``2**(bits - 1)`` everywhere (symmetric).
        bias: float32 [N], added last.
        bits: 2..8, or one width for every 16 outputs (mixed bits).
        out: float32 [M, N] to write to.

    Returns:
        float32 [M, N]: `out` or a new array.

    Raises:
        ConfigError: another number of widths.
        ValueError: a shape does not fit, a scale is not finite and > 0.
        TypeError: an array has another dtype.

    Example:
        >>> from cmibq.arrays import pack
        >>> packed = pack(np.uint8([[0, 1, 2, 3]]), bits=2)
        >>> qgemm(np.ones((1, 4), np.float32), packed, np.float16([[0.5]]), bits=2)
        array([[-1.]], dtype=float32)
    """
    one = single(bits)
    if one is None:
        return _mixed((x,), packed, scale, zero, bias, bits, out)
    halves, out, work = _buffers(x, packed, scale, one, out)
    kernels().qgemm_f32(x, packed, one, halves, zero, bias, out, work)
    return out


def qgemm_s8(
    x: S8,
    xscale: F32,
    packed: U8,
    scale: F16,
    zero: U8 | None = None,
    bias: F32 | None = None,
    *,
    bits: Bits,
    out: F32 | None = None,
) -> F32:
    """Multiply 8-bit activations with one scale per row by a packed weight.

    The dot products of a group are integers; their sum over groups, in order, is
    ``fma(scale, dot, acc)`` in float32; the result is ``acc * xscale + bias``. The same
    bits on every ISA.

    Args:
        x: int8 [M, K], as `codes_token` makes them.
        xscale: float32 [M].
        packed: as in `qgemm`.
        scale: as in `qgemm`; groups of at most 65793 inputs.
        zero: as in `qgemm`.
        bias: as in `qgemm`.
        bits: as in `qgemm`.
        out: float32 [M, N] to write to.

    Returns:
        float32 [M, N]: `out` or a new array.

    Raises:
        ValueError: as `qgemm`.
        TypeError: as `qgemm`.

    Example:
        >>> from cmibq.arrays import pack
        >>> packed = pack(np.uint8([[0, 1, 2, 3]]), bits=2)
        >>> x = np.int8([[10, 0, 0, 100]])
        >>> qgemm_s8(x, np.float32([0.5]), packed, np.float16([[1]]), bits=2)
        array([[40.]], dtype=float32)
    """
    one = single(bits)
    if one is None:
        return _mixed((x, xscale), packed, scale, zero, bias, bits, out)
    halves, out, work = _buffers(x, packed, scale, one, out)
    kernels().qgemm_s8(x, xscale, packed, one, halves, zero, bias, out, work)
    return out
