"""The Gaussian bottleneck as one operator: draw, round, divergence; the noise is drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmibq.errors import ConfigError
from cmibq.noise import inverse_normal
from cmibq.ops.channel_bits_reference import reference as round_channels
from cmibq.ops.channel_bits_reference import reference_backward as round_channels_backward
from cmibq.ops.library import (
    LIBRARY,
    empty_like,
    kernel_ready,
    recorded,
    view,
)
from cmibq.ops.noise import reference as noise
from cmibq.runtime import kernels

__all__ = ["bottleneck", "reference", "reference_backward"]

_OPERANDS = "Tensor mu, Tensor logvar, Tensor low, Tensor high, Tensor bits, Tensor key, SymInt n"
LIBRARY.define(f"bottleneck({_OPERANDS}) -> (Tensor, Tensor)")
LIBRARY.define(
    f"bottleneck_backward(Tensor gy, Tensor gkl, {_OPERANDS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _drawn(mu: Tensor, logvar: Tensor, key: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Return standard deviations, and how far from the means the latents lie."""
    eps = noise(key, (samples, mu.numel() // samples), True).view(mu.shape).to(mu.dtype)
    s = torch.exp(0.5 * logvar)
    return s, s * eps


def reference(
    mu: Tensor, logvar: Tensor, low: Tensor, high: Tensor, bits: Tensor, key: Tensor, samples: int
) -> tuple[Tensor, Tensor]:
    """Return rounded ``mu + exp(logvar / 2) noise`` and the KL in nats of every row.

    ``KL = sum (mu^2 + exp(logvar) - 1 - logvar) / 2``, from the standard normal distribution.
    """
    s, away = _drawn(mu, logvar, key, samples)
    y, _ = round_channels(mu + away, low, high, bits, None)
    return y, (0.5 * (mu * mu + s * s - 1 - logvar)).sum(1)


def reference_backward(
    gy: Tensor,
    gkl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    low: Tensor,
    high: Tensor,
    bits: Tensor,
    key: Tensor,
    samples: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of mu, logvar, low, high and bits."""
    s, away = _drawn(mu, logvar, key, samples)
    gz, glow, ghigh, gbits, _ = round_channels_backward(gy, gkl, mu + away, low, high, bits, None)
    rows = gkl[:, None]
    return gz + rows * mu, 0.5 * (gz * away + rows * (s * s - 1)), glow, ghigh, gbits


def _views(tensors: tuple[Tensor, ...], key: Tensor, samples: int) -> Any:
    """Return the operands as the C functions want them."""
    return (*(view(t.contiguous()) for t in tensors), samples, *key.tolist(), inverse_normal())


def _forward_cpu(*operands: Any) -> tuple[Tensor, Tensor]:
    *tensors, key, samples = operands
    if not kernel_ready(*tensors):
        return reference(*operands)
    y, kl = empty_like(tensors[0]), torch.empty(len(tensors[0]))
    args: Any = (*_views(tuple(tensors), key, samples), view(y), view(kl))
    kernels().bottleneck(*args)
    return y, kl


def _backward_cpu(gy: Tensor, gkl: Tensor, *operands: Any) -> tuple[Tensor, ...]:
    *tensors, key, samples = operands
    if not kernel_ready(gy, gkl, *tensors):
        return reference_backward(gy, gkl, *operands)
    mu, _, low, _, bits = tensors
    gmu, glogvar = empty_like(mu), empty_like(mu)
    gbits = torch.empty_like(bits, memory_format=torch.contiguous_format)
    ends = np.empty(low.shape), np.empty(low.shape)
    outer = view(gy.contiguous()), view(gkl.contiguous())
    made = view(gmu), view(glogvar), view(gbits), *ends
    args: Any = (*_views(tuple(tensors), key, samples), *outer, *made)
    kernels().bottleneck_bwd(*args)
    return gmu, glogvar, *(torch.from_numpy(e.astype(np.float32)) for e in ends), gbits


def _fake_backward(gy: Tensor, gkl: Tensor, *operands: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in operands[:5])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.samples = inputs
    ctx.save_for_backward(*tensors)


def _gradients(backward: Any, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return (*backward(*grads, *ctx.saved_tensors, ctx.samples), None, None)


LIBRARY.impl("bottleneck", _forward_cpu, "CPU")
LIBRARY.impl("bottleneck", reference, "CUDA")
LIBRARY.impl("bottleneck_backward", _backward_cpu, "CPU")
LIBRARY.impl("bottleneck_backward", reference_backward, "CUDA")
torch.library.register_fake(
    "cmibq::bottleneck",
    lambda mu, *rest: (torch.empty_like(mu), mu.new_empty(mu.shape[0])),
    lib=LIBRARY,
)
torch.library.register_fake("cmibq::bottleneck_backward", _fake_backward, lib=LIBRARY)
_run = recorded("bottleneck", _forward_cpu, _backward_cpu, _setup, _gradients)


def bottleneck(
    mu: Tensor,
    logvar: Tensor,
    low: Tensor,
    high: Tensor,
    bits: Tensor,
    *,
    key: Tensor,
    samples: int,
) -> tuple[Tensor, Tensor]:
    """Draw latents around their means, round them, and say how far they are from the prior.

    One pass forward and one backward, which draws the same noise again; both keep mu and logvar
    alone. Differentiable in all but the key.

    Args:
        mu: [R, C]. float32 on the CPU runs in C.
        logvar: [R, C], log variances.
        low: [C], as `high` and `bits` [G, C] of `cmibq.ops.channel_bits`.
        high: [C].
        bits: [G, C].
        key: `cmibq.ops.noise_key` of the noise; element e of a sample has that of `normal`.
        samples: samples whose rows mu has, one after the other.

    Returns:
        The rounded values [R, C], and the KL divergence from the standard normal distribution of
        every row [R], in nats.

    Raises:
        ConfigError: a shape does not fit.
        ValueError: ends that are not finite or not in order, widths outside 0..8 (on the CPU).

    References:
        Alemi et al., "Deep Variational Information Bottleneck", ICLR 2017, equation 17.

    Example:
        >>> from cmibq.ops import noise_key
        >>> mu, ends = torch.zeros(1, 2), torch.ones(2)
        >>> _, kl = bottleneck(
        ...     mu, mu, -ends, ends, torch.full((1, 2), 4.0), key=noise_key(0, 0), samples=1
        ... )
        >>> kl  # the standard normal itself
        tensor([0.])
    """
    rows, cols = mu.shape
    fits = logvar.shape == mu.shape and low.shape == high.shape == (cols,) and samples > 0
    fits = fits and bits.ndim == 2 and bits.shape[1] == cols and rows % samples == 0
    if not fits or rows % max(len(bits), 1):
        raise ConfigError(
            f"mu {[rows, cols]}, logvar {list(logvar.shape)}, low {list(low.shape)}, high"
            f" {list(high.shape)}, bits {list(bits.shape)} and {samples} samples do not fit; give"
            " [R, C] twice, [C] twice, [G, C], where G and samples divide R"
        )
    tensors = (mu, logvar, low, high, bits, key)
    found: tuple[Tensor, Tensor] = _run(tensors, *tensors, samples)
    return found
