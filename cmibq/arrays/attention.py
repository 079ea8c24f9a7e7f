"""The fusion block for NumPy: cross-attention with projections, residual and layer norm."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import ConfigError, check_tokens
from cmibq.memory import empty, scratch
from cmibq.runtime import kernels

__all__ = ["attention"]

F32 = NDArray[np.float32]
_PLANES = {"bfloat16": 1, "bfloat16x2": 2, "bfloat16x3": 3, "float32": 3}  # csrc/core/attention.h


def _check(xq: F32, xk: F32, key_mask: NDArray[np.bool_] | None, precision: str) -> None:
    check_tokens("xq", np.shape(xq))
    check_tokens("xk", np.shape(xk))
    if key_mask is not None and key_mask.dtype != np.bool_:
        raise TypeError(f"attention: key_mask has dtype {key_mask.dtype}, expected bool")
    if precision not in _PLANES:
        raise ConfigError(f"precision is {precision!r}; allowed are {', '.join(_PLANES)}")


def attention(
    xq: F32,
    xk: F32,
    wq: F32,
    wk: F32,
    wv: F32,
    wo: F32,
    *,
    heads: int,
    wp: F32 | None = None,
    bp: F32 | None = None,
    bq: F32 | None = None,
    bk: F32 | None = None,
    bv: F32 | None = None,
    bo: F32 | None = None,
    gamma: F32 | None = None,
    beta: F32 | None = None,
    key_mask: NDArray[np.bool_] | None = None,
    residual: bool = True,
    eps: float = 1e-5,
    precision: str = "float32",
    out: F32 | None = None,
) -> F32:
    """Return ``layer_norm(xq + attend(xq wq^T, kv wk^T, kv wv^T) wo^T)``; no gradients.

    ``kv = xk wp^T + bp``, or `xk` without `wp`.

    Args:
        xq: float32 [B, Lq, Dq], queries.
        xk: float32 [B, Lk, Dk], source of keys and values.
        wq: float32 [E, Dq]; `heads` divides E.
        wk: float32 [E, P]; without `wp` P = Dk.
        wv: float32 [E, P].
        wo: float32 [Do, E].
        heads: number of heads.
        wp: float32 [P, Dk] or None, projection in front of keys and values.
        bp: float32 [P] or None.
        bq: float32 [E] or None, as `bk` and `bv`.
        bk: see `bq`.
        bv: see `bq`.
        bo: float32 [Do] or None.
        gamma: float32 [Do], weight of the layer norm; None = no layer norm.
        beta: float32 [Do], its bias; with `gamma` only.
        key_mask: bool [B, Lk], True = nobody looks at this key.
        residual: add `xq`; needs Do = Dq.
        eps: of the layer norm.
        precision: ``"float32"``, ``"bfloat16x3"``, ``"bfloat16x2"`` or ``"bfloat16"``, as in
            `cmibq.ops.attention`.
        out: float32 [B, Lq, Do] to write to.

    Returns:
        float32 [B, Lq, Do]: `out` or a new array; the same bits for every thread count.

    Raises:
        ConfigError: `precision` is unknown.
        ValueError: a shape does not fit.
        TypeError: an array is not native float32, `key_mask` is not bool.

    Example:
        >>> x, eye = np.array([[[1, 0]]], np.float32), np.eye(2, dtype=np.float32)
        >>> attention(x, x, eye, eye, eye, eye, heads=1)
        array([[[2., 0.]]], dtype=float32)
    """
    _check(xq, xk, key_mask, precision)
    batch, rows, keys = *np.shape(xq)[:2], np.shape(xk)[1]
    width, wide = len(wq), len(wo)
    made = empty((batch, rows, wide)) if out is None else out
    k: Any = kernels()
    sizes = (batch, rows, keys, np.shape(xq)[2], np.shape(xk)[2], 0 if wp is None else len(wp))
    code = _PLANES[precision]
    size = k.attention_workspace(*sizes, width, wide, heads, int(residual), code, 0, -1)
    work = scratch(size)
    lse = np.empty((batch, heads, rows), np.float32)
    stat = np.empty((batch, rows, 2), np.float32)
    mask = None if key_mask is None else np.ascontiguousarray(key_mask).view(np.uint8)
    k.attention(
        xq, xk, wp, bp, wq, bq, wk, bk, wv, bv, wo, bo, gamma, beta, mask, heads, int(residual),
        eps, code, made, *[None] * 6, lse, stat, None, None, work,
    )  # fmt: skip
    return made
