"""Channels with widths of their own, which may be fractional while training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmibq.ops.channel_bits import channel_bits

__all__ = ["DifferentiableQuantizer"]


class DifferentiableQuantizer(nn.Module):
    """Round channels between running ranges, each to its own width.

    Args:
        channels: C.
        momentum: weight of a batch in the running ranges.

    The ends are the running smallest and largest value of a channel, stretched about their centre
    by a learned factor. They are buffers, so they travel in the state dict.

    Example:
        >>> quantizer = DifferentiableQuantizer(2)
        >>> y, _ = quantizer(torch.tensor([[0.0, 1.0], [1.0, 3.0]]), torch.full((1, 2), 1.5))
    """

    running_min: Tensor
    running_max: Tensor
    seen: Tensor

    def __init__(self, channels: int, *, momentum: float = 0.05) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_min", torch.zeros(channels))
        self.register_buffer("running_max", torch.ones(channels))
        self.register_buffer("seen", torch.zeros(()))
        self.log_stretch = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take the ranges of ``x`` [R, C] into the running ones; the first batch sets them."""
        low, high = torch.aminmax(x, dim=0)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
            torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
        share = torch.where(self.seen > 0, self.momentum, 1.0)
        self.running_min.lerp_(low.to(self.running_min.dtype), share)
        self.running_max.lerp_(high.to(self.running_max.dtype), share)
        self.seen.add_(1)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest level of every channel, [C] each."""
        centre = (self.running_max + self.running_min) / 2
        half = (self.running_max - self.running_min) / 2
        half = half.clamp(min=1e-6) * self.log_stretch.exp()
        return centre - half, centre + half

    def forward(
        self, x: Tensor, bits: Tensor, tables: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return `x` [R, C] rounded, and the rate of every row [R] (`cmibq.ops.channel_bits`)."""
        if self.training:
            self.observe(x)
        low, high = self.ends()
        return channel_bits(x, low, high, bits, tables)
