"""Every way of sending image tokens that is compared: the same encoder and decoder matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cm_ibq.streams import coded_bytes, codes_of, counted
from cmibq.arrays import allocate
from cmibq.nn.ib_start import independent_axes, principal_axes
from cmibq.nn.prior import DiscretePrior
from cmibq.ops.channel_bits import channel_bits

__all__ = ["GATED", "Coder", "Cost", "Sent", "Uniform", "water_filling"]

GATED = 0.4
"""Share of the training after which gates shut what a question does not need."""
_SIDE = 8  # bits of a scale and of an offset that travel


Cost = Callable[[Tensor, Tensor], Tensor]
"""Nats of reconstructions [N, T, D] of the pictures whose rows are given, [N]."""


@dataclass
class Sent:
    """What went over.

    Args:
        features: [B, T, D], as the receiver decodes them.
        rate: [B] bits of the codes under the prior.
        nominal: bits of a picture with codes of fixed length, everything included.
        side: bits of a picture that are sent beside the codes.
        codes: uint8 [B, T, L], in evaluation.
        kept: bool [B, T], tokens whose codes are sent; None: all.
    """

    features: Tensor
    rate: Tensor
    nominal: float
    side: float = 0.0
    codes: Tensor | None = None
    kept: Tensor | None = None


class Coder(nn.Module):
    """Encoder, rounding and decoder; the matrices start as independent components of the features.

    Args:
        features: [N, T, D] training features.
        channels: L.
        fixed_encoder: the encoder stays the KLT.
    """

    bits: Tensor

    def __init__(self, features: Tensor, channels: int, *, fixed_encoder: bool = False) -> None:
        super().__init__()
        start = principal_axes if fixed_encoder else independent_axes
        axes = start(features, channels)
        self.tokens, self.channels = features.shape[1], channels
        self.encoder = nn.Linear(features.shape[2], channels)
        self.decoder = nn.Linear(channels, features.shape[2])
        with torch.no_grad():
            self.encoder.weight.copy_(axes.encoder)
            self.encoder.bias.copy_(-(axes.encoder @ axes.mean))
            self.decoder.weight.copy_(axes.decoder)
            self.decoder.bias.copy_(axes.mean)
        self.encoder.requires_grad_(not fixed_encoder)
        self.register_buffer("variances", axes.variance)
        self.prior = DiscretePrior(channels)
        self.register_buffer("bits", torch.full((1, channels), 8.0))

    def send(self, features: Tensor, task: Tensor | None = None) -> Sent:
        """Send features [B, T, D]."""
        raise NotImplementedError

    def sizes(self, sent: Sent, features: Tensor, task: Tensor | None) -> list[int]:
        """Return the bytes of every stream, written by the range coder."""
        assert sent.codes is not None
        written = coded_bytes(sent.codes, self.prior.tables(), self.bits[0], sent.kept)
        return [size + math.ceil(sent.side / 8) for size in written]

    def learn_gates(self, features: Tensor, task: Tensor, cost: Cost, weight: float) -> None:
        """Called at `GATED` of the training where the coder is told the question; see Layer."""

    def set_share(self, share: float) -> None:
        """Called before every step with the share of the training that is done."""

    def start_last(self) -> None:
        """Called where the last fifth of the training starts."""

    @torch.no_grad()
    def finish(self, features: Tensor, task: Tensor | None = None) -> None:
        """Called when the training is over: the prior takes the shares of codes of training data.

        Args:
            features: [N, T, D].
            task: [N, D], of a question about each, where the coder is told it.
        """
        sent = self.eval().send(features)
        assert sent.codes is not None
        codes = sent.codes if sent.kept is None else sent.codes[sent.kept]
        self.prior.fit_(counted(codes.flatten(0, -2), self.bits[0]))


class Uniform(Coder):
    """Codes of one width for all channels, or of widths that variances say.

    Args:
        features: [N, T, D] training features.
        channels: L.
        kind: ``"tensor"``, ``"channel"``: the range of all, of a channel, is followed; ``"lsq"``:
            the step and centre of a channel are learned; ``"token"``: smallest and largest value of
            every token travel with 8 bits each; ``"water"``: widths by reverse water-filling.
        bits: of a code; a mean for ``"water"``.
        fixed_encoder: see `Coder`.
    """

    running: Tensor

    def __init__(
        self,
        features: Tensor,
        channels: int,
        kind: str,
        bits: float,
        *,
        fixed_encoder: bool = False,
    ) -> None:
        super().__init__(features, channels, fixed_encoder=fixed_encoder)
        self.kind = kind
        widths = torch.full((channels,), float(bits))
        if kind == "water":
            widths = water_filling(self.variances, round(bits * channels))
        self.bits = widths[None]
        with torch.no_grad():
            z = self.encoder(features[:2048]).flatten(0, 1)
            ends = torch.stack([z.amin(0), z.amax(0)])
        self.register_buffer("running", ends)
        self.centre = nn.Parameter(ends.mean(0))
        self.log_half = nn.Parameter(((ends[1] - ends[0]) / 2).log())

    def _ends(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind in ("lsq", "water"):
            half = self.log_half.exp()
            return self.centre - half, self.centre + half
        if self.training:
            with torch.no_grad():
                self.running.lerp_(torch.stack(torch.aminmax(z, dim=0)), 0.05)
        low, high = self.running
        if self.kind != "channel":
            low, high = low.amin().expand_as(low), high.amax().expand_as(high)
        return low, high

    def send(self, features: Tensor, task: Tensor | None = None) -> Sent:
        """Send features [B, T, D]."""
        z = self.encoder(features)
        flat = z.flatten(0, 1)
        low, high = self._ends(flat.detach())
        tables = self.prior.tables()
        side = 0.0
        if self.kind == "token":
            # Every token lies between its own ends, themselves rounded to 8 bits.
            grid = (high - low)[:1] / (2**_SIDE - 1)
            ends = torch.stack([flat.amin(1, True), flat.amax(1, True)]).detach()
            ends = ((ends - low[:1]) / grid).round() * grid + low[:1]
            width = (ends[1] - ends[0]).clamp(min=float(grid))
            low, high = torch.zeros_like(low), torch.ones_like(high)
            x, rate = channel_bits((flat - ends[0]) / width, low, high, self.bits, tables)
            y, side = ends[0] + x * width, 2.0 * _SIDE * self.tokens
        else:
            x, rate = channel_bits(flat, low, high, self.bits, tables)
            y = x
        nominal = self.tokens * float(self.bits.sum()) + side
        told = rate.view(z.shape[:2]).sum(1)
        codes = None if self.training else codes_of(x, low, high, self.bits).view(z.shape)
        return Sent(self.decoder(y.view_as(z)), told, nominal, side, codes)


def water_filling(variances: Tensor, total: int) -> Tensor:
    """Return integer bits [L] in 0..8 with a given sum that minimise ``sum variance 4^-bits``."""
    widths = np.arange(9)
    distortion = variances.double().numpy()[:, None] * 4.0**-widths
    chosen = allocate(distortion.astype(np.float32), widths, total).option
    return torch.from_numpy(widths[chosen]).float()
