"""The information-bottleneck layer: encode, share bits out, round, decode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.nn.ib_bits import BitPlan
from cmibq.nn.ib_codec import Coded
from cmibq.nn.ib_conditioner import Conditioner
from cmibq.nn.ib_input import HALVES, checked, half_wanted, inside_backward
from cmibq.nn.prior import DiscretePrior
from cmibq.ops.matrix import Matrix
from cmibq.ops.noise import noise_key, normal
from cmibq.ops.peers import world
from cmibq.quant.quantizers.channel_bits import DifferentiableQuantizer
from cmibq.recipe.cm_ibq import CMIBQConfig

__all__ = ["BitPlan", "CMIBQConfig", "IBQuantizedLayer", "IBResult"]


class _Step(NamedTuple):
    """What a call knows before it computes: target, kept maps for it, and how it was called."""

    target: float
    kept: int
    attention: Tensor | None
    gates: Tensor | None
    half: bool


class IBResult(NamedTuple):
    """What the layer found out about features [B, T, D] or [B, D]."""

    quantised: Tensor
    """[.., L], on the levels of its channels; in the dtype of the features."""
    reconstruction: Tensor
    """[.., D], in the dtype of the features."""
    mu: Tensor
    """[.., L], the latent before rounding; float32 or float64."""
    logvar: Tensor
    """[.., L]: log variance of the latent; with the discrete rate that of rounding, step^2 / 12."""
    bit_allocation: Tensor
    """[B, L], or [L] where all samples share it; with token gain the mean over tokens, [B, L]."""
    rate: Tensor
    """[B] bits per sample: of the codes under the prior, or of the Gaussian KL."""


class IBQuantizedLayer(Coded):
    """A quantised information bottleneck between features and what reads them.

    It computes in float32, and in float64 for float64 features, also under autocast and in a model
    that was cast to half precision.

    Args:
        config: see `CMIBQConfig`.

    Example:
        >>> layer = IBQuantizedLayer(CMIBQConfig(feature_dim=8, task_dim=4, hidden_dim=16))
        >>> quantised, recon, mu, logvar, bit_allocation = layer(
        ...     torch.zeros(2, 3, 8), torch.zeros(2, 4), target_bits=4
        ... )
        >>> quantised.shape, bit_allocation.shape
        (torch.Size([2, 3, 8]), torch.Size([8]))
    """

    draws: Tensor

    def __init__(self, config: CMIBQConfig) -> None:
        super().__init__(config)
        width, latent = config.feature_dim, config.latent_dim
        self.encoder = Matrix(width, latent)
        self.decoder = Matrix(latent, width)
        self.log_variance = Matrix(width, latent) if config.rate == "gaussian" else None
        sizes = (width, config.task_dim, config.hidden_dim, latent)
        self.conditioner = Conditioner(*sizes) if config.mode == "task" else None
        self.quantizer = DifferentiableQuantizer(latent, momentum=config.momentum, grid=config.grid)
        self.prior = DiscretePrior(latent) if config.rate == "discrete" else None
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self._start()

    def _start(self) -> None:
        """Begin as the identity, or as a projection and its transpose."""
        nn.init.orthogonal_(self.encoder.weight)
        if self.config.feature_dim == self.config.latent_dim:
            nn.init.eye_(self.encoder.weight)
        with torch.no_grad():
            self.decoder.weight.copy_(self.encoder.weight.mT)
        for module in (self.encoder, self.decoder):
            nn.init.zeros_(module.bias)
        if self.log_variance is not None:
            nn.init.zeros_(self.log_variance.weight)
            nn.init.constant_(self.log_variance.bias, -6.0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> IBQuantizedLayer:
        """Move with a model, but stay in float32 where it is cast to half precision."""

        def whole(t: Tensor) -> Tensor:
            made = fn(t)
            return t.to(made.device) if made.dtype in HALVES else made

        super()._apply(whole, recurse)  # type: ignore[no-untyped-call]
        return self

    def encode(
        self,
        features: Tensor,
        task_embedding: Tensor | None,
        *,
        gates: Tensor | None = None,
        half: bool = False,
    ) -> Tensor:
        """Return mu [B, T, L] of features [B, T, D]; see `Matrix` for `half`, `run` for `gates`."""
        mu: Tensor = self.encoder(features, half=half)
        if self.conditioner is not None and task_embedding is not None:
            mu = self.conditioner(mu, features, task_embedding, gates)
        return mu

    def plan(
        self,
        features: Tensor,
        task_embedding: Tensor | None = None,
        *,
        target_bits: float | None = None,
    ) -> BitPlan:
        """Return the whole bits that evaluation gives features, and what names them in a stream.

        Args:
            features: [B, T, D] or [B, D].
            task_embedding: [B, E]; needed in mode task.
            target_bits: mean bits per element; None = the current one.
        """
        x, task = checked(self.config, features, task_embedding, self.training)
        target, kept = self._now(target_bits)
        with torch.no_grad():
            wishes = self.allocation.wishes(self._importance(x, task))
            return self._plan(wishes, self._gains(x, task, target), target, kept)

    def map_index(self, features: Tensor, task_embedding: Tensor | None = None) -> Tensor:
        """Return the kept map of each sample: int64 [1] where all share one, else [B].

        Args:
            features: [B, T, D] or [B, D].
            task_embedding: [B, E]; needed in mode task.

        Raises:
            ModelError: the layer is not frozen (`freeze_`).
        """
        index = self.plan(features, task_embedding).map_index if self.frozen else None
        if index is None:
            raise ModelError("the layer keeps no maps for its target; call layer.freeze_() first")
        return index

    def _key(self, stream: int, samples: int) -> Tensor:
        """Return the key of the noise of this step: seed, step, global sample index and stream.

        Args:
            stream: 0 of the latent, 1 of the bits, 2 of rounding.
            samples: of this process; bits that all share are tried alike everywhere.
        """
        alike = stream == 1 and self.config.mode == "shared"
        first = 0 if alike else world()[0] * samples
        return noise_key(self.config.seed, self.draws, first, 4 * self.config.stream + stream)

    def _noise(self, like: Tensor, stream: int) -> Tensor:
        """Return normal noise like `like` [B, ..]; see `_key`."""
        return normal(like.shape, self._key(stream, len(like))).to(like.dtype)

    def _observe(self, z: Tensor, attention: Tensor | None) -> None:
        """Take the means [B, T, L] of a training step, which evaluation rounds, into the counts."""
        self.quantizer.observe(z.flatten(0, 1))
        if self.importance is not None:
            self.importance.observe(z, attention)
            if self.importance.watches_gradients and z.requires_grad:
                z.register_hook(self.importance.observe_gradient)

    def run(
        self,
        features: Tensor,
        task_embedding: Tensor | None = None,
        *,
        target_bits: float | None = None,
        attention: Tensor | None = None,
        gates: Tensor | None = None,
    ) -> IBResult:
        """Return all that `forward` does, and the rate.

        Args:
            features: [B, T, D] or [B, D].
            task_embedding: [B, E]; needed in mode task.
            target_bits: mean bits per element; None = the current one.
            attention: [B, T] weights of tokens, for the importance rollout.
            gates: bool [B, T + L] in place of those of `cmibq.nn.ib_gates`, in mode task.

        Raises:
            ConfigError: `target_bits` outside min_bits..max_bits.
            DataError: shapes that do not fit, NaN or infinity.
        """
        target, kept = self._now(target_bits)
        x, task = checked(self.config, features, task_embedding, self.training)
        if self.training:
            self._watch(x, task, features.ndim)
        kind = x.device.type
        step = _Step(target, kept, attention, gates, half_wanted(kind))
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                found = self._work(x, task, step)
        else:
            found = self._work(x, task, step)
        halves = features.dtype in HALVES
        told = [t.to(features.dtype) if halves else t for t in found[:2]]
        told += found[2:4]
        told = [t.squeeze(1) for t in told] if features.ndim == 2 else told
        return IBResult(told[0], told[1], told[2], told[3], found.bit_allocation, found.rate)

    def _work(self, x: Tensor, task: Tensor | None, step: _Step) -> IBResult:
        """Return the result of features [B, T, D] in the dtype of the work."""
        mu = self.encode(x, task, gates=step.gates, half=step.half)
        fresh = self.training and not inside_backward()
        if fresh:
            self.draws.add_(1)
        logvar = None if self.log_variance is None else self.log_variance(x, half=step.half)
        if fresh:
            self._observe(mu, step.attention)
        rows, extra = self._bits(x, task, (step.target, step.kept), fresh)
        flat, rate = self._rounded(mu, logvar, rows, (step.target, step.kept))
        quantised = flat.view_as(mu)
        logvar = self._rounding(rows, mu) if logvar is None else logvar
        rate = rate if extra is None else rate + extra
        told, recon = self._told(rows, x), self.decoder(quantised, half=step.half)
        return IBResult(quantised, recon, mu, logvar, told, rate)

    def _rounded(
        self, mu: Tensor, logvar: Tensor | None, rows: Tensor, now: tuple[float, int]
    ) -> tuple[Tensor, Tensor]:
        """Return the latent on its levels [B * T, L], and the bits of every sample [B]."""
        n, z = len(mu), mu.flatten(0, 1)
        random = self.training and self.config.stochastic_rounding and n > 0
        given = {"key": self._key(2, n) if random else None, "samples": n}
        if logvar is None:
            y, rates = self.quantizer(z, rows, self._rates(now, rows), observe=False, **given)
            return self._exact(y, z, rows, now), rates.view(mu.shape[:2]).sum(1)
        spread = logvar.flatten(0, 1)
        if self.training and self.quantizer.plain and n and not random:  # in one pass
            y, kl = self.quantizer.draw(z, spread, rows, key=self._key(0, n), samples=n)
        else:
            kl = (0.5 * (z.square() + spread.exp() - 1 - spread)).sum(1)
            if self.training:
                z = z + torch.exp(0.5 * spread) * self._noise(mu, 0).flatten(0, 1)
            y = self.quantizer(z, rows, None, observe=False, **given)[0]
            y = self._exact(y, z, rows, now)
        return y, kl.view(mu.shape[:2]).sum(1) / math.log(2.0)

    def _rounding(self, rows: Tensor, mu: Tensor) -> Tensor:
        """Return the log variance of rounding, step^2 / 12, like `mu`."""
        low, high = self.quantizer.ends()
        step = (high - low).detach().to(mu.dtype) / (torch.exp2(rows.detach()) - 1).clamp(min=1)
        logvar = 2 * step.log() - math.log(12.0)
        if self.token_gain is not None:
            return logvar.view(mu.shape)
        return logvar[:, None].expand(mu.shape)

    def _told(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return the bits of rows as `IBResult.bit_allocation` has them."""
        if self.token_gain is not None:
            return rows.view(*x.shape[:2], rows.shape[1]).mean(1)
        return rows[0] if self.config.mode == "shared" else rows.expand(len(x), -1)

    def forward(
        self,
        features: Tensor,
        task_embedding: Tensor | None = None,
        target_bits: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return ``(quantised, recon, mu, logvar, bit_allocation)``; see `run`."""
        return self.run(features, task_embedding, target_bits=target_bits)[:5]
