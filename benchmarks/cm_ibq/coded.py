"""Coders whose codes are meant for an entropy coder, top tokens, and the layer itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cm_ibq.coders import Coder, Sent
from cmibq.nn.ib_layer import IBQuantizedLayer
from cmibq.nn.prior import DiscretePrior
from cmibq.ops.channel_bits import channel_bits
from cmibq.recipe.cm_ibq import CMIBQConfig
from cmibq.train.schedule import BitSchedule

__all__ = ["Layer", "Stepped", "TopTokens"]

_WIDE = 8  # bits of a code that only the entropy coder bounds
_MAP = 8  # bits of the header: which map


class Stepped(Coder):
    """One step for all channels, learned, and as many levels as it takes.

    With the encoder fixed this is uniform step + KLT + entropy coder.

    Args:
        features: [N, T, D] training features.
        channels: L.
        levels: of the channel with the largest variance at the start, sets the first step.
        fixed_encoder: the encoder stays the KLT.
    """

    def __init__(
        self, features: Tensor, channels: int, levels: float, *, fixed_encoder: bool = False
    ) -> None:
        super().__init__(features, channels, fixed_encoder=fixed_encoder)
        step = 4 * float(self.variances[0].sqrt()) / levels
        self.log_step = nn.Parameter(torch.tensor(math.log(step)))
        self.prior = DiscretePrior(channels)
        with torch.no_grad():
            spread = self.variances.sqrt() / step / 255
            self.prior.log_scale.copy_(spread.clamp(min=1e-3).log()[:, None].expand(-1, 3) - 0.6)
            around = torch.tensor([-1.0, 0.0, 1.0]) * spread[:, None] + 127 / 255
            self.prior.mean.copy_(around)

    def send(self, features: Tensor, task: Tensor | None = None) -> Sent:
        """Send features [B, T, D]."""
        z = self.encoder(features)
        step = self.log_step.exp().expand(self.channels)
        bits = torch.full((1, self.channels), float(_WIDE))
        # Level 127 of 0..255 is zero, so that what does not matter falls on it.
        y, rate = channel_bits(z.flatten(0, 1), -127 * step, 128 * step, bits, self.prior.tables())
        told = rate.view(z.shape[:2]).sum(1)
        return Sent(self.decoder(y.view_as(z)), told, self.tokens * self.channels * float(_WIDE))


class TopTokens(Coder):
    """The k tokens that matter most at 8 bits, a learned vector in place of the others.

    Args:
        features: [N, T, D] training features.
        channels: L.
        keep: k.
    """

    def __init__(self, features: Tensor, channels: int, keep: int) -> None:
        super().__init__(features, channels)
        self.keep = keep
        with torch.no_grad():
            z = self.encoder(features[:2048]).flatten(0, 1)
        self.centre = nn.Parameter((z.amax(0) + z.amin(0)) / 2)
        self.log_half = nn.Parameter(((z.amax(0) - z.amin(0)) / 2).log())
        self.rest = nn.Parameter(features.mean((0, 1)).clone())
        self.score = nn.Linear(features.shape[2], 1)
        self.prior = DiscretePrior(channels)

    def send(self, features: Tensor, task: Tensor | None = None) -> Sent:
        """Send features [B, T, D]; tokens are chosen by their distance from the replacement."""
        z = self.encoder(features)
        half = self.log_half.exp()
        bits = torch.full((1, self.channels), 8.0)
        ends = self.centre - half, self.centre + half
        y, rate = channel_bits(z.flatten(0, 1), *ends, bits, self.prior.tables())
        matter = (features - self.rest).detach().square().sum(2)
        kept = torch.zeros_like(matter).scatter(1, matter.topk(self.keep, 1).indices, 1.0)
        sent = torch.where(kept[..., None] > 0, self.decoder(y.view_as(z)), self.rest)
        side = float(math.ceil(math.log2(math.comb(self.tokens, self.keep))))
        told = (rate.view_as(kept) * kept).sum(1) + side
        return Sent(sent, told, self.keep * self.channels * 8.0 + side, side)


class Layer(Coder):
    """`IBQuantizedLayer`.

    Args:
        features: [N, T, D] training features.
        config: of the layer.
    """

    def __init__(self, features: Tensor, config: CMIBQConfig) -> None:
        super().__init__(features, config.latent_dim)
        self.layer = IBQuantizedLayer(config)
        for name in ("encoder", "decoder"):
            getattr(self.layer, name).load_state_dict(getattr(self, name).state_dict())
        del self.encoder, self.decoder
        self.config = config

    def send(self, features: Tensor, task: Tensor | None = None) -> Sent:
        """Send features [B, T, D]."""
        found = self.layer.run(features, task)
        nominal = self.tokens * float(found.bit_allocation.detach().sum(-1).mean()) + _MAP
        return Sent(found.reconstruction, found.rate + _MAP, nominal, float(_MAP))

    def set_share(self, share: float) -> None:
        """Lower the mean bits by the schedule of the layer."""
        schedule = BitSchedule.of(self.config, 1000)
        self.layer.target_bits = schedule.bits(int(1000 * share))

    def start_last(self) -> None:
        """Keep integer maps from here on."""
        freeze: Any = getattr(self.layer, "freeze_", None)
        if freeze is not None:
            freeze()
