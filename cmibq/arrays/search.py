"""The scale search of AWQ and MBQ for linear layers, on NumPy arrays.

Candidates are one family with an exponent r. ``reference`` is the published one, powers of the mean
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

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmibq.arrays.reduce import abssum
from cmibq.arrays.scaleloss import LOSSES, scaleloss
from cmibq.errors import ConfigError, ModelError

__all__ = [
    "ScaleSearch",
    "argbest",
    "candidates",
    "ratios",
    "search_scales",
    "token_weights",
]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
VARIANTS = ("default", "reference")


@dataclass(frozen=True, eq=False)
class ScaleSearch:
    """What `search_scales` found.

    Args:
        losses: float64 [n_grid], loss of each candidate; the first is no scaling (RTN).
        ratio: exponent of the candidate kept.
        best_index: its index.
        scales: float32 [K], its scales; the weight is to be multiplied by them.
    """

    losses: F64
    ratio: float
    best_index: int
    scales: F32


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
    centre = np.sqrt(
        raw.max(1, keepdims=True, initial=0) * raw.min(1, keepdims=True, initial=np.inf)
    )
    return np.ascontiguousarray(raw / centre, np.float32)


def token_weights(
    answer: Bool | None, vision: Bool | None, ratio: float | None, loss: str, tokens: int
) -> F64:
    """Return the weight of every token, so that loss = sum_t weight_t * mean_c |d_tc|**p.

    Without masks all tokens count alike; with an answer mask only answers; with both, answers count
    1 and vision tokens `ratio`: ``mae`` divides both by their joint number, ``mse`` each by its
    own. Where no token is masked, all count alike.

    Args:
        answer: bool [T] or None.
        vision: bool [T] or None.
        ratio: weight of a vision token against an answer token.
        loss: ``"mae"`` or ``"mse"``.
        tokens: T.

    Raises:
        ConfigError: a vision mask without an answer mask or without a ratio, a bad shape or ratio.

    References:
        Li et al., "MBQ", CVPR 2025, eq. 6-8; normalisation as in the published code.

    Example:
        >>> token_weights(np.array([False, True]), np.array([True, False]), 0.5, "mae", 2)
        array([0.25, 0.5 ])
    """
    if vision is not None and (answer is None or ratio is None or not 0 <= ratio < np.inf):
        raise ConfigError(
            f"a vision mask with vision_weight {ratio}; pass a finite weight >= 0 and answer_mask"
        )
    for name, mask in (("answer_mask", answer), ("vision_mask", vision)):
        if mask is not None and (mask.dtype != np.bool_ or mask.shape != (tokens,)):
            raise ConfigError(f"{name} is {mask.dtype} {mask.shape}; pass bool ({tokens},)")
    text = np.zeros(tokens) if answer is None else answer.astype(np.float64)
    image = np.zeros(tokens) if vision is None else vision.astype(np.float64)
    count, images = text.sum(), image.sum()
    if count + images == 0:
        return np.full(tokens, 1 / max(tokens, 1))
    factor = 0.0 if ratio is None else ratio
    if loss == "mse":
        return np.asarray(text / max(count, 1) + factor * image / max(images, 1))
    return np.asarray((text + factor * image) / (count + images))


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


def search_scales(
    x: F32,
    w: F32 | Sequence[F32],
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    act_bits: int | None = None,
    loss: str = "mae",
    vision_mask: Bool | None = None,
    answer_mask: Bool | None = None,
    vision_weight: float | None = None,
    n_grid: int = 20,
    variant: str = "default",
) -> ScaleSearch:
    """Find the channel scales under which quantising linear layers changes their output least.

    Args:
        x: float32 [..., K], input of the layers; leave pads out (the reference variant counts all).
        w: float32 [N, K], or several that share the input: their outputs count as one.
        bits: bits per weight.
        group_size: weights per grid along K; <= 0 is one per row. The published code quantises per
            row when activations are quantised; so does ``reference``.
        symmetric: symmetric weight grid; with `act_bits` the reference variant is always symmetric.
        act_bits: bits of per-token activations; None = weights only.
        loss: ``"mae"`` or ``"mse"``.
        vision_mask: bool [...], image tokens; needs `answer_mask` and `vision_weight`.
        answer_mask: bool [...], answer tokens; alone: only these count.
        vision_weight: weight of an image token against an answer token (MBQ's gradient ratio).
        n_grid: number of candidates.
        variant: ``"default"``, or ``"reference"`` for the published candidates and grids.

    Returns:
        `ScaleSearch`; in the default variant never worse than no scaling.

    Raises:
        ConfigError: an option is out of range or masks do not fit.
        ModelError: every loss is NaN.

    References:
        Lin et al., "AWQ", MLSys 2024, eq. 4-5; Li et al., "MBQ", CVPR 2025, eq. 6-8.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(32, 16)).astype(np.float32)
        >>> w = rng.normal(size=(8, 16)).astype(np.float32)
        >>> x[:, 3] *= 50; w[:, 3] /= 50
        >>> found = search_scales(x, w, bits=3, group_size=8)
        >>> bool(found.losses[found.best_index] < 0.5 * found.losses[0]), found.scales.argmax()
        (True, np.int64(3))
    """
    weights = [w] if isinstance(w, np.ndarray) else list(w)
    x = x.reshape(-1, x.shape[-1])
    if loss not in LOSSES:
        raise ConfigError(f"loss is {loss!r}; allowed are {', '.join(LOSSES)}")
    masks = [None if m is None else m.reshape(-1) for m in (answer_mask, vision_mask)]
    token = token_weights(masks[0], masks[1], vision_weight, loss, len(x))
    if variant == "reference" and act_bits:
        group_size, symmetric = 0, True
    s = candidates(_mean_abs([x]), _mean_abs(weights), n_grid, variant)
    own = variant == "default"
    judge = functools.partial(
        scaleloss, bits=bits, group_size=group_size, symmetric=symmetric, zero_in_range=own,
        half_scale=own, act_bits=act_bits, loss=loss, token_weight=token,
    )  # fmt: skip
    total = np.zeros(n_grid)
    for one in weights:
        total += judge(x, one, s)
    losses = total / max(sum(len(one) for one in weights), 1)
    best = argbest(losses)
    return ScaleSearch(losses, ratios(n_grid, variant)[best], best, s[best])


def _mean_abs(parts: Sequence[F32]) -> F32:
    """Return the mean magnitude per column of matrices stacked on each other."""
    total = np.sum([abssum(part, axis=1) for part in parts], axis=0)
    return np.asarray(total / max(sum(map(len, parts)), 1), np.float32)
