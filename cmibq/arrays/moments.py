"""Second moments of the inputs of a linear layer, and what a changed weight costs under them.

With H = sum_t w_t x_t x_t^T the weighted squared output error of a weight that is off by d is
exactly ``sum_t w_t (d x_t)**2 = d H d^T``: whatever rounds weights needs the tokens only through H.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import ConfigError, ModelError
from cmibq.products import multiply

__all__ = ["check_moments", "output_error", "second_moments"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
_TOKENS, _COLUMNS = 4096, 512


def second_moments(x: F32, token_weight: F64 | None = None, *, out: F32 | None = None) -> F32:
    """Return ``sum_t w_t x_t x_t^T``.

    Args:
        x: float32 [..., K], inputs of the layer; leave pads out.
        token_weight: float64 [...], how much each token counts, >= 0; None = 1.
        out: float32 [K, K] to add to (a symmetric one), for tokens that come in parts.

    Returns:
        float32 [K, K], symmetric: `out` or a new array.

    Raises:
        ConfigError: weights that do not fit or are negative.
        ModelError: the sums are not finite.

    Example:
        >>> x = np.array([[1, 2], [3, 0]], np.float32)
        >>> second_moments(x, np.array([1.0, 4.0]))
        array([[37.,  2.],
               [ 2.,  4.]], dtype=float32)
    """
    cols = x.shape[-1] if x.ndim else 0
    rows = x.reshape(-1, cols) if x.size else np.empty((0, cols), np.float32)
    root = None
    if token_weight is not None:
        if token_weight.size != len(rows) or not (token_weight >= 0).all():
            raise ConfigError(
                f"token_weight has {token_weight.size} numbers for {len(rows)} tokens; give one "
                "per token, finite and >= 0"
            )
        root = np.sqrt(token_weight.reshape(-1)).astype(np.float32)
    out = np.zeros((cols, cols), np.float32) if out is None else out
    for start in range(0, len(rows), _TOKENS):
        part = rows[start : start + _TOKENS]
        if root is not None:
            part = part * root[start : start + _TOKENS, None]
        for at in range(0, cols, _COLUMNS):  # the upper half; the other one is its mirror image
            strip = part[:, at : at + _COLUMNS].T
            out[at : at + _COLUMNS, at:] += multiply(
                strip, part[:, at:], 0, 1.0, None, 0, None, None
            )
    for at in range(0, cols, _COLUMNS):
        end = at + _COLUMNS
        out[end:, at:end] = out[at:end, end:].T
    if not np.isfinite(out.diagonal()).all():
        raise ModelError("the inputs of the layer are not finite; look for NaN, inf or huge values")
    return out


def check_moments(w: F32, h: F32) -> None:
    """Refuse second moments that do not belong to a weight.

    Raises:
        ConfigError: a shape does not fit, or `h` is not float32.
        ModelError: a diagonal element is negative or not finite.
    """
    if w.ndim != 2 or h.shape != (w.shape[1], w.shape[1]) or h.dtype != np.float32:
        raise ConfigError(
            f"h is {h.dtype} {list(h.shape)} for a weight {list(w.shape)}; give float32 [K, K] from"
            " second_moments"
        )
    diagonal = h.diagonal()
    if not (np.isfinite(diagonal) & (diagonal >= 0)).all():
        raise ModelError("h has a diagonal element that is negative or not finite; measure it anew")


def output_error(d: F32, h: F32) -> F64:
    """Return ``d_n H d_n^T`` of every row: the weighted squared error of that output.

    Args:
        d: float32 [N, K], by how much the weight is off.
        h: float32 [K, K] from `second_moments`.

    Returns:
        float64 [N].

    Raises:
        ConfigError: a shape does not fit.

    Example:
        >>> h = np.array([[2, 1], [1, 3]], np.float32)
        >>> output_error(np.array([[1, -1], [0, 2]], np.float32), h)
        array([ 3., 12.])
    """
    check_moments(d, h)
    if not d.size:
        return np.zeros(len(d))
    made = multiply(d, h, 0, 1.0, None, 0, None, None)
    made *= d
    return np.asarray(made.sum(1, dtype=np.float64))
