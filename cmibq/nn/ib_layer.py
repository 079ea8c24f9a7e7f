"""The information-bottleneck layer: encode, share bits out, round, decode."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cmibq.alloc.bottleneck import ALLOCATION_NETWORKS, IMPORTANCE, BitAllocationNetwork
from cmibq.arrays import allocate
from cmibq.errors import DataError
from cmibq.nn.prior import DiscretePrior
from cmibq.quant.quantizers.channel_bits import DifferentiableQuantizer
from cmibq.recipe.cm_ibq import CMIBQConfig

__all__ = ["CMIBQConfig", "IBQuantizedLayer", "IBResult"]


class IBResult(NamedTuple):
    """What the layer found out about features [B, T, D] or [B, D]."""

    quantised: Tensor
    """[.., L], on the levels of its channels."""
    reconstruction: Tensor
    """[.., D]."""
    mu: Tensor
    """[.., L], the latent before rounding."""
    logvar: Tensor
    """[.., L] or [L]: log variance of the latent; with the discrete rate, that of rounding."""
    bit_allocation: Tensor
    """[B, L], or [L] where all samples share it."""
    rate: Tensor
    """[B] bits per sample: of the codes under the prior, or of the Gaussian KL."""


class IBQuantizedLayer(nn.Module):
    """A quantised information bottleneck between features and what reads them.

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

    allocation: BitAllocationNetwork
    current_bits: Tensor

    def __init__(self, config: CMIBQConfig) -> None:
        super().__init__()
        self.config = config
        width, latent = config.feature_dim, config.latent_dim
        task = config.task_dim if config.mode == "task" else 0
        self.encoder = nn.Linear(width, latent)
        self.decoder = nn.Linear(latent, width)
        self.log_variance = nn.Linear(width, latent) if config.rate == "gaussian" else None
        self.conditioner = nn.Linear(task, 2 * latent) if task else None
        self.importance = IMPORTANCE[config.importance](width, task, config.hidden_dim, latent)
        self.allocation = ALLOCATION_NETWORKS[config.allocator](
            latent, config.hidden_dim, config.min_bits, config.max_bits
        )
        self.quantizer = DifferentiableQuantizer(latent, momentum=config.momentum)
        self.prior = DiscretePrior(latent) if config.rate == "discrete" else None
        self.register_buffer("current_bits", torch.tensor(float(config.stage1_bits)))
        self._start()

    def _start(self) -> None:
        """Begin as the identity, or as a projection and its transpose."""
        nn.init.orthogonal_(self.encoder.weight)
        if self.config.feature_dim == self.config.latent_dim:
            nn.init.eye_(self.encoder.weight)
        with torch.no_grad():
            self.decoder.weight.copy_(self.encoder.weight.mT)
        for module in (self.encoder, self.decoder, self.conditioner, self.log_variance):
            if module is not None:
                nn.init.zeros_(module.bias)
        if self.conditioner is not None:
            nn.init.zeros_(self.conditioner.weight)
        if self.log_variance is not None:
            nn.init.zeros_(self.log_variance.weight)
            nn.init.constant_(self.log_variance.bias, -6.0)

    @property
    def target_bits(self) -> float:
        """The mean bits per element in force: the annealed value, or what was set last."""
        return float(self.current_bits)

    @target_bits.setter
    def target_bits(self, value: float) -> None:
        self.config.check_target(value)
        self.current_bits.fill_(value)

    def _check(self, features: Tensor, task_embedding: Tensor | None) -> Tensor:
        """Return features as [B, T, D].

        Raises:
            DataError: shapes that do not fit the configuration or each other.
        """
        c = self.config
        if features.ndim not in (2, 3) or features.shape[-1] != c.feature_dim:
            raise DataError(
                f"features has shape {list(features.shape)}; give [B, {c.feature_dim}] or"
                f" [B, T, {c.feature_dim}] (feature_dim)"
            )
        want = [features.shape[0], c.task_dim]
        if c.mode == "task" and (task_embedding is None or list(task_embedding.shape) != want):
            got = None if task_embedding is None else list(task_embedding.shape)
            raise DataError(f"task_embedding has shape {got}; mode 'task' needs {want}")
        return features[:, None] if features.ndim == 2 else features

    def encode(self, features: Tensor, task_embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mu and logvar, [B, T, L] each, of features [B, T, D]."""
        mu = self.encoder(features)
        if self.conditioner is not None and task_embedding is not None:
            gain, shift = self.conditioner(task_embedding.to(mu.dtype))[:, None].chunk(2, -1)
            mu = mu * (1 + gain) + shift
        if self.log_variance is None:
            low, high = self.quantizer.ends()
            return mu, torch.zeros_like(mu[0, 0]) + (high - low).detach().log()
        return mu, self.log_variance(features)

    def allocate(
        self, features: Tensor, task_embedding: Tensor | None, target_bits: float
    ) -> Tensor:
        """Return bits [G, L], G = 1 or B: with fractions while training, integers otherwise."""
        importance = self.importance(features, task_embedding)
        if self.training:
            bits: Tensor = self.allocation(importance, target_bits)
            return bits
        wishes = self.allocation.wishes(importance).detach().double().cpu().numpy()
        return torch.from_numpy(self._whole_bits(wishes, target_bits)).to(features)

    def _whole_bits(self, wishes: np.ndarray, target: float) -> np.ndarray:
        """Return the integers of least expected distortion ``sum 4^(wish - bits)``, row by row."""
        c = self.config
        total = math.floor(target * c.latent_dim + 1e-6)
        widths = np.arange(c.min_bits, c.max_bits + 1)
        found = []
        for row in wishes:
            distortion = 4.0 ** (row[:, None] - row.max() - widths)
            chosen = allocate(distortion.astype(np.float32), widths, total).option
            found.append(widths[chosen])
        return np.stack(found).astype(np.float64)

    def run(
        self,
        features: Tensor,
        task_embedding: Tensor | None = None,
        *,
        target_bits: float | None = None,
    ) -> IBResult:
        """Return all that `forward` does, and the rate.

        Args:
            features: [B, T, D] or [B, D], float32.
            task_embedding: [B, E]; needed in mode task.
            target_bits: mean bits per element; None = the current one.

        Raises:
            ConfigError: `target_bits` outside min_bits..max_bits.
            DataError: shapes that do not fit.
        """
        x = self._check(features, task_embedding)
        target = self.target_bits if target_bits is None else float(target_bits)
        self.config.check_target(target)
        mu, logvar = self.encode(x, task_embedding)
        bits = self.allocate(x, task_embedding, target)
        z = mu
        if self.log_variance is not None and self.training:
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        tables = None if self.prior is None else self.prior.tables()
        flat, rates = self.quantizer(z.flatten(0, 1), bits, tables)
        quantised = flat.view_as(mu)
        rate = rates.view(x.shape[:2]).sum(1)
        if self.log_variance is not None:
            kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar)
            rate = kl.flatten(1).sum(1) / math.log(2.0)
        recon = self.decoder(quantised)
        told = [t if features.ndim == 3 else t.squeeze(1) for t in (quantised, recon, mu)]
        logvar = logvar.squeeze(1) if logvar.ndim > features.ndim else logvar
        shared = bits[0] if bits.shape[0] == 1 and self.config.mode == "shared" else bits
        return IBResult(told[0], told[1], told[2], logvar, shared, rate)

    def forward(
        self,
        features: Tensor,
        task_embedding: Tensor | None = None,
        target_bits: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return ``(quantised, recon, mu, logvar, bit_allocation)``; see `run`."""
        return self.run(features, task_embedding, target_bits=target_bits)[:5]
