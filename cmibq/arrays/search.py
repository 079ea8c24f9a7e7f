"""The scale search of AWQ and MBQ for linear layers, on NumPy arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cmibq.arrays.candidates import argbest, candidates, ratios
from cmibq.arrays.race import Race, race
from cmibq.arrays.reduce import abssum
from cmibq.arrays.scaleloss import LOSSES, scaleloss
from cmibq.errors import ConfigError
from cmibq.runtime import kernels

__all__ = ["ScaleSearch", "race_layers", "search_scales", "token_weights"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
EFFORTS = ("full", "race")
FAST_BFLOAT16 = ("avx512amx",)
"""ISA levels on which bfloat16 products are several times as fast as float32 ones."""
TOKENS_OF_A_BLOCK = 16
CLOSE = 2.0**-14
"""Part of the loss by which bfloat16 cannot swap two candidates: 16 times what it moves one by."""


@dataclass(frozen=True, eq=False)
class ScaleSearch:
    """What `search_scales` found.

    Args:
        losses: float64 [n_grid], loss of each candidate; the first is no scaling (RTN). After a
            race: estimates from the tokens that a candidate was judged on.
        ratio: exponent of the candidate kept.
        best_index: its index.
        scales: float32 [K], its scales; the weight is to be multiplied by them.
        tokens: int [n_grid], number of tokens each candidate was judged on.
    """

    losses: F64
    ratio: float
    best_index: int
    scales: F32
    tokens: NDArray[np.intp]


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
    effort: str = "full",
    tolerance: float = 5e-4,
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
        loss: ``"mae"`` or ``"mse"``. Reweighted, both are divided by the number of image and answer
            tokens; in the reference variant ``mse`` divides each kind by its own number.
        vision_mask: bool [...], image tokens; needs `answer_mask` and `vision_weight`.
        answer_mask: bool [...], answer tokens; alone: only these count.
        vision_weight: weight of an image token against an answer token (MBQ's gradient ratio).
        n_grid: number of candidates.
        variant: ``"default"``, or ``"reference"`` for the published candidates and grids.
        effort: ``"full"`` judges every candidate on every token in float32. ``"race"`` judges all
            on a few tokens and goes on with those that may still win (`cmibq.arrays.race`), in
            bfloat16 on CPUs where that is fast; those that it could swap there are judged once
            more in float32. 10 to 100 times faster on thousands of tokens.
        tolerance: of a race: candidates that cannot be better than the leader by more than this
            fraction of its loss are dropped.

    Returns:
        `ScaleSearch`; in the default variant never worse than no scaling (a race: but for the
        tolerance).

    Raises:
        ConfigError: an option is out of range, arrays or masks do not fit, or there are no tokens.
        ModelError: a mean magnitude or every loss is not finite.

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
    _check_operands(x, weights)
    x = x.reshape(-1, x.shape[-1]) if x.size else x[:0]
    if not len(x):
        raise ConfigError("x holds no tokens; give calibration data of this layer")
    if loss not in LOSSES:
        raise ConfigError(f"loss is {loss!r}; allowed are {', '.join(LOSSES)}")
    answer, vision = (None if m is None else m.reshape(-1) for m in (answer_mask, vision_mask))
    own = variant == "default"
    token = token_weights(answer, vision, vision_weight, "mae" if own else loss, len(x))
    if effort not in EFFORTS:
        raise ConfigError(f"effort is {effort!r}; allowed are {', '.join(EFFORTS)}")
    s = candidates(_mean_abs([x]), _mean_abs(weights), n_grid, variant)
    if act_bits and not own:
        group_size, symmetric = 0, True
    judge = functools.partial(
        scaleloss, bits=bits, group_size=group_size, symmetric=symmetric, zero_in_range=own,
        half_scale=own, act_bits=act_bits, loss=loss,
    )  # fmt: skip
    losses, best, tokens = _judged(judge, x, weights, s, token, effort, 1 + LOSSES[loss], tolerance)
    losses = losses / max(sum(len(one) for one in weights), 1)
    return ScaleSearch(losses, ratios(n_grid, variant)[best], best, s[best], tokens)


def _check_operands(x: F32, weights: Sequence[F32]) -> None:
    """Refuse operands that kernels would, by the names they have here."""
    if not weights:
        raise ConfigError("w is empty; give the weight of a layer, or several that share the input")
    names = ["w"] if len(weights) == 1 else [f"w[{i}]" for i in range(len(weights))]
    for name, one in zip(["x", *names], [x, *weights], strict=True):
        if not isinstance(one, np.ndarray) or one.dtype != np.float32:
            what = one.dtype if isinstance(one, np.ndarray) else type(one).__name__
            raise ConfigError(f"{name} is {what}; give a float32 array, such as by astype()")
        if not one.flags.c_contiguous:
            raise ConfigError(f"{name} is not C-contiguous; give numpy.ascontiguousarray({name})")
    if not x.ndim:
        raise ConfigError("x is one number; give [..., K], the inputs of the layer")
    for name, one in zip(names, weights, strict=True):
        if one.ndim != 2 or (x.size and one.shape[1] != x.shape[-1]):
            raise ConfigError(
                f"{name} is {list(one.shape)} and x {list(x.shape)}; give [N, K] and [..., K]"
            )


def _judged(
    judge: Callable[..., F64], x: F32, weights: Sequence[F32], s: F32, token: F64, effort: str,
    power: int, tolerance: float,
) -> tuple[F64, int, NDArray[np.intp]]:  # fmt: skip
    """Return the losses of all candidates, the best one, and how many tokens each one saw."""
    if effort == "race":
        found = race_layers(judge, x, weights, s, token, power, tolerance)
        return found.losses, found.best, np.minimum(found.blocks * TOKENS_OF_A_BLOCK, len(x))
    losses = np.sum([judge(x, one, s, token_weight=token) for one in weights], axis=0)
    return losses, argbest(losses), np.full(len(s), len(x), np.intp)


def race_layers(
    judge: Callable[..., F64], x: F32, weights: Sequence[F32], s: F32, token: F64, power: int,
    tolerance: float = 5e-4,
) -> Race:  # fmt: skip
    """Race candidate scales of layers that share an input over blocks of successive tokens.

    Finalists that all tokens did not separate, and that bfloat16 could swap, are judged once more
    in float32.

    Args:
        judge: `scaleloss` with all but x, w, s, token_weight, blocks and precision filled in.
        x: float32 [T, K].
        weights: float32 [N_i, K] each.
        s: float32 [S, K].
        token: float64 [T]; blocks of tokens without weight stay out.
        power: 1 (mae) or 2 (mse).
        tolerance: as in `race`.

    Raises:
        ModelError: no candidate has a finite loss.
    """
    fast = "bfloat16" if kernels().isa in FAST_BFLOAT16 else "float32"
    starts = np.arange(0, len(x), TOKENS_OF_A_BLOCK)
    size = np.add.reduceat(token * abssum(x, axis=0) ** power, starts)
    used = np.flatnonzero(size > 0)
    if not len(used):
        used, size = np.arange(len(starts)), np.ones(len(starts))

    def losses(which: NDArray[np.intp], blocks: NDArray[np.intp], precision: str = fast) -> F64:
        rows = [np.arange(b, min(b + TOKENS_OF_A_BLOCK, len(x))) for b in starts[used[blocks]]]
        first = np.cumsum([0, *map(len, rows[:-1])])
        at = np.concatenate(rows)
        part, of = np.ascontiguousarray(x[at]), np.ascontiguousarray(token[at])
        what = {"token_weight": of, "blocks": first, "precision": precision}
        total = np.zeros((len(which), len(blocks)))
        for one in weights:
            total += judge(part, one, s[which], **what)
        return total

    found = race(losses, len(s), size[used], tolerance=tolerance)
    argbest(found.losses)  # refuses losses of which none is finite
    if fast == "float32" or found.separated:
        return found
    last = found.finalists
    last = last[found.losses[last] <= (1 + CLOSE) * found.losses[found.best]]
    if len(last) == 1:
        return found
    exact = losses(last, np.arange(len(used)), "float32").sum(1)
    total = found.losses.copy()
    total[last] = exact
    return replace(found, best=int(last[argbest(exact)]), losses=total)


def _mean_abs(parts: Sequence[F32]) -> F32:
    """Return the mean magnitude per column of matrices stacked on each other."""
    total = np.sum([abssum(part, axis=1) for part in parts], axis=0)
    return np.asarray(total / max(sum(map(len, parts)), 1), np.float32)
