"""Products of float matrices and of batches of them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cmibq.runtime import kernels

__all__ = ["gemm"]

F32 = NDArray[np.float32]


def _four(x: F32, batch: tuple[int, ...], name: str) -> F32:
    """Return `x` broadcast to the batch, as [outer, inner, rows, cols]; a view where possible."""
    x = np.broadcast_to(x, (*batch, *x.shape[-2:]))
    if len(batch) > 2:
        x = x.reshape(math.prod(batch[:-1]), *x.shape[-3:])
    return x[(None,) * (4 - x.ndim)]


def gemm(
    a: F32,
    b: F32,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    out: F32 | None = None,
) -> F32:
    """Multiply matrices: ``a @ b``, the same bits on every ISA and thread count.

    Operands may be any views without negative strides: transposed and batched views are not copied.

    Args:
        a: float32 [..., M, K].
        b: float32 [..., K, N]; the batch dimensions of `a` and `b` broadcast.
        trans_a: take `a` as [..., K, M].
        trans_b: take `b` as [..., N, K], as a linear layer keeps its weight.
        out: float32 [..., M, N], C-contiguous, to write to; it must not overlap `a` or `b`.

    Returns:
        float32 [..., M, N]: `out` or a new array. An element is the sum, in order, of one chain of
        FMAs per 256 inputs.

    Raises:
        ValueError: a shape does not fit, or an operand has negative strides.
        TypeError: an array is not native float32.

    Example:
        >>> x = np.array([[1.0, 2.0]], np.float32)
        >>> gemm(x, x, trans_b=True)
        array([[5.]], dtype=float32)
    """
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(f"gemm: a and b have {a.ndim} and {b.ndim} dimensions, at least 2 needed")
    a = a.swapaxes(-1, -2) if trans_a else a
    b = b.swapaxes(-1, -2) if trans_b else b
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape:
        raise ValueError(f"gemm: out has shape {out.shape}, expected {shape}")
    core = kernels()
    work = np.empty(core.gemm_workspace(math.prod(batch), *shape[-2:], a.shape[-1]), np.uint8)
    to = out.reshape(1, -1, *shape[-2:]) if len(batch) < 2 else out.reshape(-1, *shape[-3:])
    core.gemm(_four(a, batch, "a"), _four(b, batch, "b"), to, work)
    return out
