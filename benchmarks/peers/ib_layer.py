"""CM-IBQ's layer written in torch alone, with the parameters of ours: what autograd makes of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["rounded", "torch_loss"]

TABLE = 511


def _project(wishes: Tensor, target: float, low: float, high: float) -> Tensor:
    """Return bits [1, L] with mean `target`: the shift by bisection, without a gradient."""
    with torch.no_grad():
        ends = low - wishes.amax(), high - wishes.amin()
        for _ in range(30):
            middle = (ends[0] + ends[1]) / 2
            less = (wishes + middle).clamp(low, high).mean() < target
            ends = torch.where(less, middle, ends[0]), torch.where(less, ends[1], middle)
    return (wishes + ends[0]).clamp(low, high)


def rounded(x: Tensor, low: Tensor, high: Tensor, bits: Tensor, tables: Tensor | None) -> Any:
    """Return values [R, C] and rates [R] or None; straight-through, as one would write it."""
    whole = bits.detach().floor().clamp(max=7)
    share, found = bits - whole, []
    column = torch.arange(x.shape[1]) * TABLE
    for b in (whole, whole + 1):
        top = 2.0**b - 1
        step = (high - low) / top.clamp(min=1)
        u = ((x - low) / step).clamp(min=0).minimum(top)
        q = u + (u.round() - u).detach()
        y = torch.where(b > 0, low + q * step, (low + high) / 2)
        if tables is None:
            found.append((y, None))
            continue
        flat, code = tables.flatten(), q.detach().long()
        start, last = column + top.long(), top.long()
        held = flat.detach()
        slope = (held[start + (code + 1).minimum(last)] - held[start + (code - 1).clamp(min=0)]) / 2
        found.append((y, flat[start + code] + slope * (q - q.detach())))
    (y0, r0), (y1, r1) = found
    rate = None if r0 is None else (r0 + share * (r1 - r0)).sum(1)
    return y0 + share * (y1 - y0), rate


def torch_loss(layer: nn.Module, x: Tensor, target: float) -> Tensor:
    """Return the loss of one training step of a shared layer: reconstruction and rate.

    Args:
        layer: an `IBQuantizedLayer`, of which only parameters and buffers are taken.
        x: features [B, T, D].
        target: mean bits.
    """
    held: Any = layer
    quantizer, config = held.quantizer, held.config
    mu = functional.linear(x, held.encoder.weight, held.encoder.bias).float()
    z = mu
    if held.log_variance is not None:
        weight, bias = held.log_variance.weight, held.log_variance.bias
        logvar = functional.linear(x, weight, bias).float()
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    with torch.no_grad():
        for running, new in zip(
            (quantizer.running_min, quantizer.running_max),
            torch.aminmax(z.flatten(0, 1), dim=0),
            strict=True,
        ):
            running.lerp_(new, quantizer.momentum)
    low, high = quantizer.ends()
    wishes = held.allocation.wishes(held._importance(x, None))
    bits = _project(wishes, target, config.min_bits, config.max_bits)
    few = None if torch.compiler.is_compiling() else bits  # as ours: widths that are in use
    tables = None if held.prior is None else held.prior.tables(few)
    y, rate = rounded(z.flatten(0, 1), low, high, bits, tables)
    recon = functional.linear(y.view_as(mu), held.decoder.weight, held.decoder.bias)
    if rate is None:
        rate = 0.5 * (mu.square() + logvar.exp() - 1 - logvar) / math.log(2.0)
    error = (recon.float() - x).square().mean()
    return error + config.beta * math.log(2.0) * rate.sum() / mu.numel()
