"""Output error of a quantised linear layer for many candidate scales at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import ConfigError
from cmibq.runtime import kernels

__all__ = ["LOSSES", "scaleloss"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
LOSSES: dict[str, int] = {"mae": 0, "mse": 1}
"""Name of a loss -> its number in C; the power of the error is one more."""


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

    Returns:
        float64 [S]; NaN or infinity where x, w or a scale of the grid is not finite. The same bits
        for every thread count.

    Raises:
        ConfigError: `loss` is unknown or `group_size` does not divide K.
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
    cols = np.shape(w)[-1] if np.ndim(w) else 0
    if group_size > 0 and cols % group_size:
        raise ConfigError(f"group_size is {group_size}; it must divide the {cols} columns of w")
    token = np.ones(len(x)) if token_weight is None else token_weight
    out = np.empty(len(s))
    k, act = kernels(), act_bits or 0
    work = np.empty(k.scaleloss_workspace(len(x), len(w), cols, act))
    mode = symmetric * 1 | zero_in_range * 2 | half_scale * 4  # csrc/core/grid.h
    k.scaleloss(x, w, token, s, bits, group_size, mode, act, LOSSES[loss], out, work)
    return out
