"""Output error of a quantised linear layer for many candidate scales at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import ConfigError
from cmibq.runtime import kernels

__all__ = ["LOSSES", "PRECISIONS", "scaleloss"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
S64 = NDArray[np.int64]
LOSSES: dict[str, int] = {"mae": 0, "mse": 1}
"""Name of a loss -> its number in C; the power of the error is one more."""
PRECISIONS = ("float32", "bfloat16")
"""What the factors of the products are rounded to; sums are float32 and double."""


def scaleloss(
    x: F32,
    w: F32,
    s: F32,
    *,
    bits: int,
    group_size: int = 0,
    symmetric: bool = False,
    zero_in_range: bool = True,
    half_scale: bool = True,
    act_bits: int | None = None,
    loss: str = "mae",
    token_weight: F64 | None = None,
    blocks: S64 | None = None,
    precision: str = "float32",
) -> F64:
    """Return the summed error of ``x w^T`` when ``w * s`` is quantised, for every candidate s.

    ``loss[i] = sum_t token_weight[t] * sum_n |e_tn|**p`` with ``e = x (Q(w s)/s - w)^T``, or with
    `act_bits` ``e = Q_token(x / s) Q(w s)^T - x w^T``; p is 1 (mae) or 2 (mse). Not normalised.

    Args:
        x: float32 [T, K], inputs of the layer.
        w: float32 [N, K], its weight.
        s: float32 [S, K], candidate scales of the input channels, finite and > 0.
        bits: bits of the weight, 1..8.
        group_size: weights per grid along K; <= 0 is one grid per row.
        symmetric: as in `cmibq.arrays.qparams`.
        zero_in_range: as in `cmibq.arrays.qparams`.
        half_scale: as in `cmibq.arrays.qparams`.
        act_bits: bits of activations, quantised per token; None = not quantised.
        loss: ``"mae"`` or ``"mse"``.
        token_weight: float64 [T]; None = ones.
        blocks: int64 [B], first token of each block, ascending from 0: the loss is then given per
            block of tokens. None = one number per candidate.
        precision: ``"float32"``, or ``"bfloat16"``: inputs and weight errors are rounded to
            bfloat16, which moves a loss by about 2**-18 of itself. Several times faster on CPUs
            with AMX or AVX512-BF16, slower on others.

    Returns:
        float64 [S], or [S, B] with `blocks`; NaN or infinity where x, w or a scale of the grid is
        not finite. The same bits for every thread count.

    Raises:
        ConfigError: `loss` or `precision` is unknown or `group_size` does not divide K.
        ValueError: a shape or value does not fit (see the message).
        TypeError: an array is not native float32 (token_weight: float64).

    References:
        Lin et al., "AWQ", MLSys 2024, eq. 4.

    Example:
        >>> eye = np.eye(2, dtype=np.float32)
        >>> w = np.array([[4.0, 1.0]], np.float32)
        >>> s = np.array([[1, 1], [0.25, 1]], np.float32)
        >>> scaleloss(eye, w, s, bits=2, symmetric=True)
        array([1., 0.])
    """
    if loss not in LOSSES:
        raise ConfigError(f"loss is {loss!r}; allowed are {', '.join(LOSSES)}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; allowed are {', '.join(PRECISIONS)}")
    cols = np.shape(w)[-1] if np.ndim(w) else 0
    if group_size > 0 and cols % group_size:
        raise ConfigError(f"group_size is {group_size}; it must divide the {cols} columns of w")
    token = np.ones(len(x)) if token_weight is None else token_weight
    first = np.zeros(1, np.int64) if blocks is None else blocks
    out = np.empty((len(s), len(first)))
    k, act, half = kernels(), act_bits or 0, precision == "bfloat16"
    work = np.empty(k.scaleloss_workspace(len(x), len(w), cols, len(first), act, half), np.uint8)
    mode = symmetric * 1 | zero_in_range * 2 | half_scale * 4  # csrc/core/grid.h
    what = (bits, group_size, mode, act, LOSSES[loss], int(half), first)
    k.scaleloss(x, w, token, s, *what, out, work)
    return out[:, 0] if blocks is None else out
