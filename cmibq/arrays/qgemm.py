"""Activations times packed low-bit weights, without unpacking the weights as a whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.runtime import kernels

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


def qgemm(
    x: F32,
    packed: U8,
    scale: F16,
    zero: U8 | None = None,
    bias: F32 | None = None,
    *,
    bits: int,
    out: F32 | None = None,
) -> F32:
    """Multiply float activations by a packed weight: ``x @ w.T + bias``.

    Element k of output row n of the weight is ``(code - zero) * scale`` of its group. Sums of
    products are exact within blocks of at most 256 inputs (docs/numerics.md). A result does not
    depend on the other rows of `x`, on the thread count or on the ISA.

    Args:
        x: float32 [M, K].
        packed: uint8 [N, ceil(K * bits / 8)], codes as `pack` packs them.
        scale: float16 [N, G], > 0; G equal groups of successive inputs, multiples of 8
            or one.
        zero: uint8 [N, ceil(G * bits / 8)], zero points packed like the codes; None means
            ``2**(bits - 1)`` everywhere (symmetric).
        bias: float32 [N], added last.
        bits: 2..8.
        out: float32 [M, N] to write to.

    Returns:
        float32 [M, N]: `out` or a new array.

    Raises:
        ValueError: a shape does not fit, a scale is not finite and > 0.
        TypeError: an array has another dtype.

    Example:
        >>> from cmibq.arrays import pack
        >>> packed = pack(np.uint8([[0, 1, 2, 3]]), bits=2)
        >>> qgemm(np.ones((1, 4), np.float32), packed, np.float16([[0.5]]), bits=2)
        array([[-1.]], dtype=float32)
    """
    halves, out, work = _buffers(x, packed, scale, bits, out)
    kernels().qgemm_f32(x, packed, bits, halves, zero, bias, out, work)
    return out


def qgemm_s8(
    x: S8,
    xscale: F32,
    packed: U8,
    scale: F16,
    zero: U8 | None = None,
    bias: F32 | None = None,
    *,
    bits: int,
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
        bits: 2..8.
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
    halves, out, work = _buffers(x, packed, scale, bits, out)
    kernels().qgemm_s8(x, xscale, packed, bits, halves, zero, bias, out, work)
    return out
