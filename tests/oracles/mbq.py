"""Plain torch statement of RTN, SmoothQuant, AWQ and MBQ, to test the library against.

Written for reading, not for speed. All arithmetic that decides a code is done in the dtype of the
tensor given, as published; losses are accumulated in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Found",
    "Quantised",
    "Scheme",
    "act_max",
    "asymmetric",
    "clip_search",
    "fuse_linear",
    "fuse_norm",
    "modality_ratios",
    "quantised_linear",
    "scale_grid",
    "search",
    "smooth_scale",
    "symmetric",
    "token_weights",
]

FLOOR = 1e-5
Block = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Quantised:
    """A fake-quantised tensor with its scale and zero point per row (or group of a row)."""

    out: Tensor
    scale: Tensor
    zero: Tensor


@dataclass(frozen=True)
class Scheme:
    """What is quantised: weights per group, or (``act_bits``) weights per row and tokens."""

    bits: int
    group: int = -1
    act_bits: int | None = None

    def weight(self, w: Tensor) -> Tensor:
        """Fake-quantise a weight [N, K]."""
        if self.act_bits is None:
            return asymmetric(w, self.bits, self.group).out
        return symmetric(w, self.bits).out

    def act(self, x: Tensor) -> Tensor:
        """Fake-quantise activations [..., K], or return them as they are."""
        return x if self.act_bits is None else symmetric(x, self.act_bits).out


@dataclass(frozen=True)
class Found:
    """A search over one group: candidates [20, K], their losses [20], the index kept."""

    grid: Tensor
    losses: Tensor
    best: int

    @property
    def scale(self) -> Tensor:
        """Return the scale vector kept."""
        return self.grid[self.best]


def asymmetric(x: Tensor, bits: int, group: int = -1) -> Quantised:
    """Quantise groups of the last axis to 0 .. 2^bits - 1; ``group <= 0`` takes whole rows.

    The range is [min, max] as met: it is not widened to contain zero.
    """
    top = 2**bits - 1
    rows = x.reshape(-1, group if group > 0 else x.shape[-1])
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    scale = (high - low).clamp(min=FLOOR) / top
    zero = (-(low / scale).round()).clamp(0, top)
    code = ((rows / scale).round() + zero).clamp(0, top)
    return Quantised(((code - zero) * scale).reshape(x.shape), scale[:, 0], zero[:, 0])


def symmetric(x: Tensor, bits: int, *, per_tensor: bool = False) -> Quantised:
    """Quantise rows of the last axis (or all of ``x``) to -2^(bits-1) .. 2^(bits-1) - 1."""
    rows = x.reshape(1 if per_tensor else -1, -1 if per_tensor else x.shape[-1])
    top = 2 ** (bits - 1) - 1
    scale = rows.abs().amax(1, keepdim=True).clamp(min=FLOOR) / top
    code = (rows / scale).round().clamp(-top - 1, top)
    return Quantised((code * scale).reshape(x.shape), scale[:, 0], torch.zeros_like(scale[:, 0]))


def quantised_linear(x: Tensor, weight: Tensor, bias: Tensor | None, scheme: Scheme) -> Tensor:
    """Return Q(x) Q(W)^T + b; the output is not quantised."""
    return torch.nn.functional.linear(scheme.act(x), scheme.weight(weight), bias)


def scale_grid(x: Tensor, points: int = 20) -> Tensor:
    """Return candidate scales [points, K]: powers i/points of mean|x|, centred around 1."""
    mean = x.abs().reshape(-1, x.shape[-1]).mean(0)
    raw = torch.stack([mean.pow(i / points).clamp(min=1e-4) for i in range(points)])
    return raw / (raw.amax(1) * raw.amin(1)).sqrt()[:, None]


def token_weights(
    shape: Sequence[int],
    answer: Tensor | None = None,
    vision: Tensor | None = None,
    ratio: float | None = None,
    loss: str = "mae",
) -> Tensor:
    """Return w_t in float64 such that the loss is the sum of w_t mean_c |d_tc|^p.

    All tokens count alike without masks (or without a ratio); answers only without a vision mask.
    With both, ``mse`` divides each modality by its own token count, ``mae`` both by their sum.
    """
    if answer is None or (vision is not None and ratio is None):
        return torch.full(tuple(shape), 1.0, dtype=torch.float64) / torch.Size(shape).numel()
    text = answer.double()
    if vision is None or ratio is None:
        return text / text.sum()
    image = vision.double()
    if loss == "mse":
        return text / text.sum() + ratio * image / image.sum()
    return (text + ratio * image) / (text.sum() + image.sum())


def search(
    block: Block,
    weights: Mapping[str, Tensor],
    x: Tensor,
    scheme: Scheme,
    token_weight: Tensor,
    *,
    loss: str = "mae",
    seen: Tensor | None = None,
    grid: Tensor | None = None,
) -> Found:
    """Try every candidate scale of one group; keep the first of the smallest losses.

    Args:
        block: Maps (input [B, T, K], the group's weights) to the output that is compared.
        weights: Float weights [N, K] of the group.
        x: Float input of the group: the target is ``block(x, weights)``.
        scheme: What is quantised.
        token_weight: See ``token_weights``, [B, T].
        loss: ``"mae"`` or ``"mse"``.
        seen: Input that the quantised group sees, if not ``x``.
        grid: Candidates [20, K], if not those of ``scale_grid(seen)``.
    """
    target, power = block(x, weights), 1 if loss == "mae" else 2
    seen = x if seen is None else seen
    grid = scale_grid(seen) if grid is None else grid
    losses = []
    for s in grid:
        quantised = {name: scheme.weight(w * s) for name, w in weights.items()}
        if scheme.act_bits is None:
            out = block(seen, {name: w / s for name, w in quantised.items()})
        else:
            out = block(scheme.act(seen / s), quantised)
        error = (target - out).double().abs().pow(power).mean(-1)
        losses.append(float((token_weight * error).sum()))
    return Found(grid, torch.tensor(losses, dtype=torch.float64), losses.index(min(losses)))


def fuse_norm(norm: Tensor, weights: Sequence[Tensor], s: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return norm / s and W s: the product is unchanged."""
    return norm / s, [w * s for w in weights]


def fuse_linear(previous: Tensor, weight: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``previous`` with its last len(s) rows divided by s, and W s."""
    out = previous.clone()
    out[-len(s) :] /= s[:, None]
    return out, weight * s


def modality_ratios(grads: Tensor, answer: Tensor, vision: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh vision tokens against answer tokens by their mean absolute gradients.

    Args:
        grads: dL/d(output) [layer, sample, token, channel] of one kind of Linear.
        answer: Answer tokens [sample, token].
        vision: Vision tokens [sample, token].

    Returns:
        Means [layer, 2] (vision, answer), averaged over samples that count alike, and the ratio
        used per layer: vision / answer, but at least the median of all layers.
    """
    rows = [
        [torch.stack([g[m].abs().mean() for g, m in zip(layer, mask, strict=True)]).mean()]
        for layer in grads.float()
        for mask in (vision, answer)
    ]
    mean = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)
    ratio = mean[:, 0] / mean[:, 1]
    return mean, ratio.clamp(min=float(torch.quantile(ratio, 0.5)))


def act_max(x: Tensor) -> Tensor:
    """Return max|x| per channel over all tokens (SmoothQuant's statistics)."""
    return x.abs().reshape(-1, x.shape[-1]).amax(0)


def smooth_scale(maxima: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """Return max(a^alpha / w^(1 - alpha), 1e-5), w the column maxima of all weights together."""
    columns = torch.cat(list(weights)).abs().amax(0).clamp(min=FLOOR)
    return (maxima.pow(alpha) / columns.pow(1 - alpha)).clamp(min=FLOOR)


def clip_search(
    weight: Tensor, x: Tensor, bits: int, group: int, tokens: int
) -> tuple[Tensor, Tensor]:
    """Shrink each group's range by steps of 5 % down to 55 %; keep the best for a token sample.

    Returns:
        The clipping values and their mean squared output errors, both [N, K / group].
    """
    x = x.reshape(-1, x.shape[-1])
    x = x[:: len(x) // tokens].reshape(-1, x.shape[-1] // group, group)
    w = weight.reshape(len(weight), -1, group)
    full = w.abs().amax(-1)
    target = (x * w[:, None]).sum(-1)
    best, error = full.clone(), torch.full_like(full, 1e9)
    for i in range(10):
        limit = full * (1 - i / 20)
        clipped = w.clamp(-limit[..., None], limit[..., None])
        q = asymmetric(clipped.reshape(weight.shape), bits, group).out.reshape(w.shape)
        now = ((x * q[:, None]).sum(-1) - target).pow(2).mean(1)
        better = now < error
        error, best = torch.where(better, now, error), torch.where(better, limit, best)
    return best, error
