"""Candidate scales of the AWQ and MBQ searches.

They are one family with an exponent r. ``reference`` is the published one, powers of the mean
activation: ``s = a**r``, r = 0, 1/20, ..., 19/20. ``default`` also looks at the weights:

    r = 0: s = 1 (no scaling),    r > 0: s = a**r / c**(1 - r)

with a the mean magnitude of each input channel and c that of each weight column. Why: the output
error of a group is about sum_k (a_k / s_k)**2 times the squared step, and the step follows the
largest c_j s_j. With a p-norm in place of the largest, the minimum over s is exactly
``s = a**(2/(p+2)) / c**(p/(p+2))``: this family, with r = 2/(p+2). Any function-preserving
rescaling (x_k f, w_k / f) is undone for every r > 0, since s_k becomes s_k f; powers of a alone do
so only at r = 1, where they over-protect strong channels. llm-compressor calls the family duo
scaling; SmoothQuant's formula is its member with maxima for means and r fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import ConfigError, ModelError

__all__ = ["VARIANTS", "argbest", "candidates", "ratios"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
VARIANTS = ("default", "reference")


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise ConfigError(f"variant is {variant!r}; allowed are {', '.join(VARIANTS)}")


def ratios(n_grid: int, variant: str = "default") -> list[float]:
    """Return the exponents tried: up to 1, in the reference variant up to 1 - 1/n_grid.

    Raises:
        ConfigError: n_grid < 2, or an unknown variant.

    Example:
        >>> ratios(5), ratios(4, "reference")
        ([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 0.25, 0.5, 0.75])
    """
    _check_variant(variant)
    if n_grid < 2:
        raise ConfigError(f"n_grid is {n_grid}; allowed are integers from 2")
    return [i / (n_grid - (variant == "default")) for i in range(n_grid)]


def candidates(a: F32, c: F32, n_grid: int, variant: str = "default") -> F32:
    """Return candidate scales, each centred so that the largest times the smallest is 1.

    Args:
        a: float32 [K], mean magnitude of each input channel.
        c: float32 [K], mean magnitude of each weight column; not used by the reference variant.
        n_grid: number of candidates.
        variant: ``"default"`` or ``"reference"`` (see the module).

    Returns:
        float32 [n_grid, K]; row 0 is ones. Powers are computed in double: 1 ulp between machines.

    Raises:
        ConfigError: as `ratios`.
        ModelError: a mean is not finite.

    Example:
        >>> a, c = np.array([1, 16], np.float32), np.array([1, 1 / 16], np.float32)
        >>> candidates(a, c, 3)
        array([[1.  , 1.  ],
               [0.25, 4.  ],
               [0.25, 4.  ]], dtype=float32)
    """
    if not (np.isfinite(a).all() and np.isfinite(c).all()):
        raise ModelError(
            "mean magnitudes are not finite; look for NaN or inf in weights and inputs"
        )
    rho = np.asarray(ratios(n_grid, variant), np.float32).astype(np.float64)[:, None]
    if variant == "reference":
        raw = np.maximum((a.astype(np.float64) ** rho).astype(np.float32), np.float32(1e-4))
    else:
        # The floors keep dead channels and dead columns from stretching the centring.
        a, c = (np.maximum(v.astype(np.float64), 1e-5 * v.max(initial=0) + 1e-30) for v in (a, c))
        raw = (a**rho / c ** (1 - rho)).astype(np.float32)
        raw[0] = 1
    return np.ascontiguousarray(raw / _centre(raw), np.float32)


def _centre(raw: F32) -> F32:
    """Return the geometric mean of the largest and the smallest of every row, [n_grid, 1].

    In double where their product leaves float32: dead inputs and zero weights make such rows.
    """
    high = raw.max(1, keepdims=True, initial=0)
    low = raw.min(1, keepdims=True, initial=np.inf)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        square = high * low
        exact = np.sqrt(high.astype(np.float64) * low)
    plain = (square >= np.finfo(np.float32).tiny) & np.isfinite(square)
    return np.asarray(np.where(plain, np.sqrt(square), exact), np.float32)


def argbest(losses: Sequence[float] | F64) -> int:
    """Return the index of the first smallest loss; a NaN is never the smallest.

    Raises:
        ModelError: no loss is finite.

    Example:
        >>> argbest([float("nan"), 2.0, 1.0, 1.0])
        2
    """
    values = np.asarray(losses, np.float64)
    if not np.isfinite(values).any():
        raise ModelError(
            "no candidate has a finite loss; look for NaN, inf or huge values in weights and inputs"
        )
    return int(np.nanargmin(values))
