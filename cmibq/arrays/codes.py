"""Integer codes of a grid and back, per row or per token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.memory import empty
from cmibq.runtime import kernels

__all__ = ["codes", "codes_token", "decode", "fakequant_token"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def codes(x: F32, scale: F32, zero: U8, *, bits: int, out: U8 | None = None) -> U8:
    """Return the codes of `x` on a grid per row: ``rint(x / scale) + zero``, saturating.

    Args:
        x: float32 [R, C].
        scale: float32 [R], > 0.
        zero: uint8 [R], a code.
        bits: 1..8.
        out: uint8 [R, C] to write to.

    Returns:
        uint8 [R, C], ``0 .. 2**bits - 1``: `out` or a new array. NaN becomes 0.

    Raises:
        ValueError: a shape does not fit, a scale is not finite and > 0, a zero point is no code.

    Example:
        >>> x = np.array([[-9.0, 0.0, 0.3, 9.0]], np.float32)
        >>> codes(x, np.float32([0.5]), np.uint8([2]), bits=3)
        array([[0, 2, 3, 7]], dtype=uint8)
    """
    out = empty(x.shape, np.uint8) if out is None else out
    kernels().codes_row(x, scale, zero, bits, out)
    return out


def decode(codes: U8, scale: F32, zero: U8, *, out: F32 | None = None) -> F32:
    """Return the values of codes; equals `fakequant` bit for bit on codes made by `codes`.

    Args:
        codes: uint8 [R, C].
        scale: float32 [R], > 0.
        zero: uint8 [R].
        out: float32 [R, C] to write to.

    Returns:
        float32 [R, C]: ``(codes - zero) * scale``, never -0; `out` or a new array.

    Raises:
        ValueError: a shape does not fit, a scale is not finite and > 0.

    Example:
        >>> decode(np.uint8([[0, 2, 7]]), np.float32([0.5]), np.uint8([2]))
        array([[-1. ,  0. ,  2.5]], dtype=float32)
    """
    out = empty(codes.shape) if out is None else out
    kernels().decode_row(codes, scale, zero, out)
    return out


def codes_token(x: F32, *, out: NDArray[np.int8] | None = None) -> tuple[NDArray[np.int8], F32]:
    """Return signed 8-bit codes of activations with one scale per token (row).

    Args:
        x: float32 [T, C].
        out: int8 [T, C] to write the codes to.

    Returns:
        (codes, scale): int8 [T, C], float32 [T]; ``scale = max(max|x|, 1e-5) / 127``. A token with
        NaN or infinity keeps that scale and gets codes 0, so its products are NaN.

    Example:
        >>> codes_token(np.array([[127.0, -3.4, 0.0]], np.float32))
        (array([[127,  -3,   0]], dtype=int8), array([1.], dtype=float32))
    """
    out = empty(x.shape, np.int8) if out is None else out
    scale = np.empty(len(x), np.float32)
    kernels().codes_token_s8(x, out, scale)
    return out, scale


def fakequant_token(x: F32, *, bits: int, out: F32 | None = None) -> F32:
    """Round activations to a signed grid per token (row) and back.

    Args:
        x: float32 [T, C].
        bits: 2..16.
        out: float32 [T, C] to write to; may be `x` itself.

    Returns:
        float32 [T, C]: `out` or a new array. A token with NaN or infinity becomes NaN.

    Raises:
        ValueError: bits out of range.

    Example:
        >>> fakequant_token(np.array([[7.0, -3.4, 0.2]], np.float32), bits=4)
        array([[ 7., -3.,  0.]], dtype=float32)
    """
    out = empty(x.shape) if out is None else out
    kernels().fakequant_token(x, bits, out)
    return out
