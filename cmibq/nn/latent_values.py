"""Codes of a latent, and the levels that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from cmibq.ops.channel_bits import TABLE, offset
from cmibq.quant.quantizers.channel_bits import DifferentiableQuantizer
from cmibq.quant.quantizers.channel_grids import ChannelGrid

__all__ = ["codes_of", "settle_", "unit_levels", "values_of"]

_LEAST = 1e-30


def unit_levels(grid: ChannelGrid) -> Tensor:
    """Return the levels of a grid between -1 and 1 for every width, float32 [511]; 0 for 0 bits.

    Found by rounding: values all over the range, and powers of two.
    """
    powers = torch.exp2(-torch.arange(127.0))
    v = torch.cat([torch.linspace(-1, 1, 2**16 + 1), powers, -powers])[:, None]
    found = torch.zeros(TABLE)
    for bits in range(1, 9):
        level, code = grid(v, torch.full((1, 1), float(bits)), None)
        found[2**bits - 1 + code[:, 0].long()] = level[:, 0]
    return found


@torch.no_grad()
def settle_(quantizer: DifferentiableQuantizer) -> None:
    """Take the learned stretch into the ranges, so that the ends need no exponential.

    What is left, sums and halves, is the same on every machine.
    """
    low, high = quantizer.ends()
    quantizer.running_min.copy_(low)
    quantizer.running_max.copy_(high)
    quantizer.log_stretch.zero_()


def _steps(low: Tensor, high: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    top = torch.exp2(bits) - 1
    return top, ((high - low) / top.clamp(min=1)).clamp(min=_LEAST)


def codes_of(quantizer: DifferentiableQuantizer, x: Tensor, bits: Tensor) -> Tensor:
    """Return the codes of the levels that the quantiser rounds to, uint8 [R, L].

    Args:
        quantizer: of the layer.
        x: [R, L].
        bits: whole numbers, float [1, L] or [R, L].
    """
    low, high = (end.to(x.dtype) for end in quantizer.ends())
    if quantizer.plain:
        top, step = _steps(low, high, bits)
        code = ((x - low) / step).clamp(min=0).minimum(top).round()
    else:
        v = (x - (high + low) / 2) / ((high - low) / 2)
        code = quantizer.grid(v, bits.clamp(min=1), None)[1].round()
    return torch.where(bits > 0, code, 0.0).to(torch.uint8)


def values_of(
    quantizer: DifferentiableQuantizer, codes: Tensor, bits: Tensor, units: Tensor
) -> Tensor:
    """Return the levels of codes [R, L], float32.

    Args:
        quantizer: of the layer.
        codes: uint8 [R, L].
        bits: whole numbers, float [1, L] or [R, L].
        units: `unit_levels` of its grid; not read where steps are even.
    """
    low, high = quantizer.ends()
    centre = (low + high) * 0.5
    if quantizer.plain:
        return torch.where(bits > 0, low + codes * _steps(low, high, bits)[1], centre)
    level = units[offset(bits) + codes.long()]
    return torch.where(bits > 0, centre + (high - low) / 2 * level, centre)
