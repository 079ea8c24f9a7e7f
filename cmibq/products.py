"""What the NumPy and the torch form of `gemm` share: shapes, views and the call of the kernel."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cmibq import memory
from cmibq.errors import nearest
from cmibq.runtime import kernels

__all__ = ["ACTIVATIONS", "PRECISIONS", "activation_code", "multiply", "planes", "product_shape"]

F32 = NDArray[np.float32]
ACTIVATIONS = ("none", "gelu", "gelu_tanh", "silu")
"""Names of the activations, in the order of their codes in C (cq_act)."""


PRECISIONS = ("float32", "bfloat16", "bfloat16x2", "bfloat16x3")
"""How operands are multiplied; the index is how many bfloat16 an operand is split into."""


def planes(precision: str) -> int:
    """Return how many bfloat16 an operand is split into; 0 is float32.

    Raises:
        ValueError: no such precision.

    Example:
        >>> planes("bfloat16x3")
        3
    """
    if precision not in PRECISIONS:
        raise ValueError(f"gemm: precision is {precision!r}; {nearest(precision, PRECISIONS)}")
    return PRECISIONS.index(precision)


def activation_code(name: str | None) -> int:
    """Return the code of an activation; None is "none".

    Raises:
        ValueError: no such activation.

    Example:
        >>> activation_code("silu")
        3
    """
    if name is None:
        return 0
    if name not in ACTIVATIONS:
        raise ValueError(f"gemm: activation is {name!r}; {nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS.index(name)


def product_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of ``a @ b`` for shapes [..., M, K] and [..., K, N].

    Raises:
        ValueError: fewer than two dimensions, or sizes that do not fit.

    Example:
        >>> product_shape((5, 1, 2, 3), (4, 3, 7))
        (5, 4, 2, 7)
    """
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"gemm: a and b have {len(a)} and {len(b)} dimensions; at least 2 needed")
    if a[-1] != b[-2]:
        raise ValueError(f"gemm: a has {a[-1]} columns and b has {b[-2]} rows; they must be equal")
    return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


def _four(x: F32, batch: tuple[int, ...]) -> F32:
    """Return `x` broadcast to the batch, as [outer, inner, rows, cols]."""
    if x.shape[:-2] != batch:
        x = np.broadcast_to(x, (*batch, *x.shape[-2:]))
    if len(batch) > 2:
        x = x.reshape(math.prod(batch[:-1]), *x.shape[-3:])
    return x[(None,) * (4 - x.ndim)]


def multiply(
    a: F32,
    b: F32,
    split: int,
    scale: float,
    bias: F32 | None,
    act: int,
    residual: F32 | None,
    out: F32 | None,
) -> F32:
    """Return ``activation(a @ b * scale + bias) + residual`` of float32 arrays, in C.

    Args:
        a: [..., M, K], any strides that are not negative.
        b: [..., K, N], likewise.
        split: see `planes`.
        scale: a factor.
        bias: [N] or None.
        act: code of an activation.
        residual: [..., M, N], C-contiguous, or None.
        out: [..., M, N], C-contiguous, or None for a new array.

    Example:
        >>> one = np.ones((1, 1), np.float32)
        >>> multiply(one, one, 0, 2.0, None, 0, one, None)
        array([[3.]], dtype=float32)
    """
    shape = product_shape(a.shape, b.shape)
    out = memory.empty(shape) if out is None else out
    for name, x in (("out", out), ("residual", residual)):
        if x is not None and x.shape != shape:
            raise ValueError(f"gemm: {name} has shape {x.shape}, expected {shape}")
    batch = shape[:-2]
    core = kernels()
    size = core.gemm_workspace(math.prod(batch), shape[-2], shape[-1], a.shape[-1], split)
    more = None if residual is None else _four(residual, batch)
    work = memory.empty(size, np.uint8)
    core.gemm(
        _four(a, batch), _four(b, batch), split, scale, bias, act, more, _four(out, batch), work
    )
    return out
