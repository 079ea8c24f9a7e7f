"""Channels with widths of their own, which may be fractional while training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmibq.ops.bottleneck import bottleneck
from cmibq.ops.channel_bits import channel_bits
from cmibq.ops.noise import uniform
from cmibq.ops.peers import all_max_
from cmibq.ops.reduce import minmax
from cmibq.quant.quantizers.channel_grids import CHANNEL_GRIDS, between_grids

__all__ = ["DifferentiableQuantizer"]


class DifferentiableQuantizer(nn.Module):
    """Round channels between running ranges, each to its own width.

    The ends are the running smallest and largest value of a channel, stretched about their centre
    by a learned factor. They are buffers, so they travel in the state dict, and all processes of a
    distributed training have the same.

    Args:
        channels: C.
        momentum: weight of a batch in the running ranges.
        grid: where the levels lie: affine, log or pow2 (`CHANNEL_GRIDS`).

    Example:
        >>> quantizer = DifferentiableQuantizer(2)
        >>> y, _ = quantizer(torch.tensor([[0.0, 1.0], [1.0, 3.0]]), torch.full((1, 2), 1.5))
    """

    running_min: Tensor
    running_max: Tensor
    seen: Tensor

    def __init__(self, channels: int, *, momentum: float = 0.05, grid: str = "affine") -> None:
        super().__init__()
        self.momentum, self.grid = momentum, CHANNEL_GRIDS[grid]
        self.plain = grid == "affine"
        self.register_buffer("running_min", torch.zeros(channels))
        self.register_buffer("running_max", torch.ones(channels))
        self.register_buffer("seen", torch.zeros(()))
        self.log_stretch = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take the ranges of ``x`` [R, C] into the running ones; the first batch sets them.

        Channels that hold NaN or infinity keep their ranges, and so do all where R is 0 in every
        process.
        """
        if len(x):
            low, high = minmax(x.detach().contiguous(), axis=1)
        else:
            low = x.new_full(x.shape[1:], torch.inf)
            high = -low
        ends = all_max_(torch.cat([-low, high]))
        low, high = -ends[: len(low)], ends[len(low) :]
        share = torch.where(self.seen > 0, self.momentum, 1.0).to(self.running_min.dtype)
        share = share * (low.isfinite() & high.isfinite())
        for held, new in ((self.running_min, low), (self.running_max, high)):
            held.lerp_(new.nan_to_num().to(held.dtype), share)
        self.seen.add_(share.amax() > 0)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest level of every channel, [C] each.

        A channel that never varied has levels 1e-6 about its value.
        """
        centre = (self.running_max + self.running_min) / 2
        half = (self.running_max - self.running_min) / 2
        half = half.clamp(min=1e-6) * self.log_stretch.exp()
        return centre - half, centre + half

    def forward(
        self,
        x: Tensor,
        bits: Tensor,
        tables: Tensor | None = None,
        *,
        observe: bool = True,
        key: Tensor | None = None,
        samples: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return `x` [R, C] rounded, and the rate of every row [R] (`cmibq.ops.channel_bits`).

        Args:
            x: [R, C].
            bits: [G, C], see `cmibq.ops.channel_bits.channel_bits`.
            tables: [C, 511], bits that codes take.
            observe: in training, take the ranges of `x` in first.
            key: `cmibq.ops.noise_key`, to round at random: up with the probability of the fraction.
            samples: with a key: samples whose rows `x` has.
        """
        if self.training and observe:
            self.observe(x)
        low, high = (end.to(x.dtype) for end in self.ends())
        if self.plain:
            return channel_bits(x, low, high, bits.to(x.dtype), tables, key=key, samples=samples)
        noise = None
        if key is not None:
            noise = uniform((samples, x.numel() // max(samples, 1)), key).view(x.shape).to(x.dtype)
        return between_grids(self.grid, x, low, high, bits.to(x.dtype), tables, noise)

    def draw(
        self, mu: Tensor, logvar: Tensor, bits: Tensor, *, key: Tensor, samples: int
    ) -> tuple[Tensor, Tensor]:
        """Return latents drawn around `mu` and rounded [R, C], and their KL in nats [R].

        For affine grids; see `cmibq.ops.bottleneck`.

        Args:
            mu: [R, C].
            logvar: [R, C].
            bits: [G, C].
            key: `cmibq.ops.noise_key` of the noise.
            samples: samples whose rows `mu` has.
        """
        low, high = (end.to(mu.dtype) for end in self.ends())
        return bottleneck(mu, logvar, low, high, bits.to(mu.dtype), key=key, samples=samples)
