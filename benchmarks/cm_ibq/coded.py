"""Coders whose codes are meant for an entropy coder, top tokens, and the layer itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.cm_ibq.coders import GATED, Coder, Cost, Sent
from benchmarks.cm_ibq.streams import codes_of
from cmibq.nn.ib_gates import Trials, gate_loss, start_rest_, try_gates
from cmibq.nn.ib_layer import IBQuantizedLayer
from cmibq.ops.channel_bits import channel_bits
from cmibq.recipe.cm_ibq import CMIBQConfig
from cmibq.train.schedule import BitSchedule

__all__ = ["Layer", "Stepped", "TopTokens"]

_HEADER = 8  # bits of a stream with codes of fixed length
_REPLAYS = 1500  # steps that gates learn from trials, on few numbers
_REPLAY_RATE = 5e-3


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
        with torch.no_grad():
            spread = self.variances.sqrt() / step / 255
            self.prior.log_scale.copy_(spread.clamp(min=1e-3).log()[:, None].expand(-1, 3) - 0.6)
            around = torch.tensor([-1.0, 0.0, 1.0]) * spread[:, None] + 127 / 255
            self.prior.mean.copy_(around)

    def send(self, features: Tensor, task: Tensor | None = None) -> Sent:
        """Send features [B, T, D]."""
        z = self.encoder(features)
        step = self.log_step.exp().expand(self.channels)
        # Level 127 of 0..255 is zero, so that what does not matter falls on it.
        low, high = -127 * step, 128 * step
        y, rate = channel_bits(z.flatten(0, 1), low, high, self.bits, self.prior.tables())
        told = rate.view(z.shape[:2]).sum(1)
        codes = None if self.training else codes_of(y, low, high, self.bits).view(z.shape)
        nominal = self.tokens * self.channels * 8.0
        return Sent(self.decoder(y.view_as(z)), told, nominal, 0.0, codes)


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

    def send(self, features: Tensor, task: Tensor | None = None) -> Sent:
        """Send features [B, T, D]; tokens are chosen by their distance from the replacement."""
        z = self.encoder(features)
        half = self.log_half.exp()
        ends = self.centre - half, self.centre + half
        y, rate = channel_bits(z.flatten(0, 1), *ends, self.bits, self.prior.tables())
        matter = (features - self.rest).detach().square().sum(2)
        kept = torch.zeros_like(matter).scatter(1, matter.topk(self.keep, 1).indices, 1.0)
        sent = torch.where(kept[..., None] > 0, self.decoder(y.view_as(z)), self.rest)
        side = float(math.ceil(math.log2(math.comb(self.tokens, self.keep))))
        told = (rate.view_as(kept) * kept).sum(1) + side
        codes = None if self.training else codes_of(y, *ends, self.bits).view(z.shape)
        nominal = self.keep * self.channels * 8.0 + side
        return Sent(sent, told, nominal, side, codes, kept > 0)


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
        del self.encoder, self.decoder, self.prior
        self.config, self.share = config, 0.0

    def send(self, features: Tensor, task: Tensor | None = None) -> Sent:
        """Send features [B, T, D]."""
        gates = None
        if task is not None and self.training and self.share < GATED:
            # They know nothing yet.
            gates = torch.ones(len(task), self.tokens + self.channels, dtype=torch.bool)
        found = self.layer.run(features, task, gates=gates)
        nominal = self.tokens * float(found.bit_allocation.detach().sum(-1).mean()) + _HEADER
        return Sent(found.reconstruction, found.rate, nominal, float(_HEADER))

    def sizes(self, sent: Sent, features: Tensor, task: Tensor | None) -> list[int]:
        """Return the bytes of every stream that the layer writes, header and map included."""
        made = self.layer.compress(features, task)
        opened = self.layer.decompress(made)
        found = self.layer.run(features, task).quantised
        assert bool((opened == found).all()), "a stream is decoded to another latent"
        return list(made.sizes)

    def learn_gates(self, features: Tensor, task: Tensor, cost: Cost, weight: float) -> None:
        """Try gates of all samples twice, and learn what was better from all trials.

        Args:
            features: [N, T, D] training features.
            task: [N, D], of a question about each.
            cost: nats of a question.
            weight: nats per bit.
        """
        start_rest_(self.layer, features, task)
        seen: list[Trials] = []
        for start in (0, 1):
            for rows in torch.arange(len(features)).split(64):
                if len(rows) and rows[0] // 64 % 2 == start:
                    seen.append(self._tried(rows, features, task, cost, weight))
            self._replay([torch.cat(part) for part in zip(*seen, strict=True)])

    def _tried(
        self, rows: Tensor, features: Tensor, task: Tensor, cost: Cost, weight: float
    ) -> Trials:
        def paid(sent: Tensor, which: Tensor) -> Tensor:
            return cost(sent, rows[which])

        return try_gates(self.layer, features[rows], task[rows], paid, weight=weight)

    def _replay(self, trials: list[Tensor]) -> None:
        """Learn from trials, by and by."""
        assert self.layer.conditioner is not None
        gates = self.layer.conditioner.gates
        optimiser = torch.optim.Adam(gates.parameters(), lr=_REPLAY_RATE)
        for step in range(_REPLAYS):
            for group in optimiser.param_groups:
                group["lr"] = _REPLAY_RATE * (1 - step / _REPLAYS)
            some = torch.randint(len(trials[0]), (128,))
            optimiser.zero_grad(set_to_none=True)
            gate_loss(self.layer, Trials(*(part[some] for part in trials))).backward()
            optimiser.step()

    def set_share(self, share: float) -> None:
        """Lower the mean bits by the schedule of the layer."""
        self.share = share
        schedule = BitSchedule.of(self.config, 1000)
        self.layer.target_bits = schedule.bits(int(1000 * share))

    def start_last(self) -> None:
        """Keep integer maps from here on."""
        self.layer.freeze_()

    @torch.no_grad()
    def finish(self, features: Tensor, task: Tensor | None = None) -> None:
        """Make the integer tables that streams are coded with, from counts.

        Args:
            features: [N, T, D] training features.
            task: [N, D] of a question about each, in mode task.
        """
        self.layer.eval().freeze_()
        self.layer.finalize_(self.layer.count_codes(features, task))
