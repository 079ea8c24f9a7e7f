"""Networks that say how important channels are, and how many bits each gets."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from cmibq.alloc.whole import whole_bits
from cmibq.errors import ConfigError
from cmibq.ops.alloc import project_bits
from cmibq.ops.matrix import Matrix, silent
from cmibq.registry import Registry

__all__ = [
    "ALLOCATION_NETWORKS",
    "IMPORTANCE",
    "BitAllocationNetwork",
    "ChannelAllocator",
    "ChannelImportance",
    "ImportanceEstimationNetwork",
]


class ChannelImportance(nn.Module):
    """How much each latent channel matters; what an entry of `IMPORTANCE` is.

    Subclasses are made with ``(feature_dim, task_dim, hidden_dim, latent_dim)`` and define
    `forward`; `observe` and `observe_gradient` where they count something.
    """

    ranged: ClassVar[bool] = True
    """Whether it weighs errors, so that a channel's range counts beside it; False: it has it."""
    watches_gradients: ClassVar[bool] = False
    """Whether the layer hands in the gradient of the latent after every backward pass."""

    def forward(self, features: Tensor, task_embedding: Tensor | None) -> Tensor:
        """Return the importance, > 0: [1, L] for all samples, or [B, L].

        Args:
            features: [B, T, D].
            task_embedding: [B, E], or None.
        """
        raise NotImplementedError

    def observe(self, latent: Tensor, attention: Tensor | None) -> None:
        """See the latent [B, T, L] of a training step, and weights of its tokens [B, T]."""

    def observe_gradient(self, gradient: Tensor) -> None:
        """See the gradient of the loss with respect to the latent, [B, T, L]."""


class ChannelAllocator(nn.Module):
    """Bits per channel from importance; what an entry of `ALLOCATION_NETWORKS` is.

    Subclasses define `wishes`. A wish is half the binary logarithm of what the error of a channel
    weighs; only differences count: ``4^(wish - bits)`` is the expected distortion.

    Args:
        latent_dim: L.
        hidden_dim: hidden width, of those that have a network.
        min_bits: fewest bits.
        max_bits: most.
        costs: what one bit of each channel costs, L integers from 1; () = 1.
        soft: do not meet the target in training, a loss pulls the mean there.

    Raises:
        ConfigError: as many costs as there are no channels.
    """

    reads: ClassVar[str | None] = None
    """The importance it needs in place of the configured one; "" = none at all."""
    draws: ClassVar[bool] = False
    """Whether training needs normal noise [G, L]."""
    costs: Tensor | None

    def __init__(
        self,
        latent_dim: int,
        hidden_dim: int,
        min_bits: int,
        max_bits: int,
        *,
        costs: tuple[int, ...] = (),
        soft: bool = False,
    ) -> None:
        super().__init__()
        if costs and len(costs) != latent_dim:
            raise ConfigError(f"costs has {len(costs)} entries; give one per channel, {latent_dim}")
        self.min_bits, self.max_bits, self.whole_costs = min_bits, max_bits, tuple(costs)
        told = torch.tensor(costs, dtype=torch.float32) if costs else None
        self.register_buffer("costs", told, persistent=False)
        self.level = nn.Parameter(torch.zeros(())) if soft else None

    def wishes(self, importance: Tensor) -> Tensor:
        """Return what channels would like, up to a constant, [G, L]."""
        raise NotImplementedError

    def meet(self, wishes: Tensor, target_bits: float) -> Tensor:
        """Return the bits in ``min_bits..max_bits`` of wishes, with fractions, [G, L].

        Their (cost-weighted) mean is the target, by `project_bits`. Where the budget is soft each
        wish is squeezed in between instead, and a learned level shifts them all.
        """
        if self.level is None:
            weight = None if self.costs is None else self.costs.to(wishes.dtype)
            lo, hi = self.min_bits, self.max_bits
            return project_bits(wishes.contiguous(), target_bits, lo, hi, weight=weight)
        reach = self.max_bits - self.min_bits
        around = wishes - wishes.mean(1, keepdim=True) + self.level
        return self.min_bits + reach * torch.sigmoid(around * (4 / max(reach, 1)))

    def whole(self, wishes: Tensor, total: int, least: int | None = None) -> Tensor:
        """Return the integers of least expected distortion, uint8 [G, L]; see `whole_bits`.

        Args:
            wishes: [G, L].
            total: their sum.
            least: fewest bits, where not `min_bits`.
        """
        lo = self.min_bits if least is None else least
        return whole_bits(wishes, lo, self.max_bits, total, costs=self.whole_costs)

    def forward(
        self, importance: Tensor, target_bits: float, noise: Tensor | None = None
    ) -> Tensor:
        """Return bits [G, L] for training, each row with mean `target_bits` unless soft.

        Args:
            importance: [G, L], > 0.
            target_bits: the mean.
            noise: [G, L] normal numbers, of those that draw.
        """
        return self.meet(self.wishes(importance), target_bits)


IMPORTANCE: Registry[type[ChannelImportance]] = Registry("importance")
ALLOCATION_NETWORKS: Registry[type[ChannelAllocator]] = Registry("allocation network")


@IMPORTANCE.register("network")
class ImportanceEstimationNetwork(ChannelImportance):
    """How much each latent channel matters, learned; of a task where one is given.

    Args:
        feature_dim: D.
        task_dim: E; 0 without tasks: importance is then that of the channels alone.
        hidden_dim: hidden width.
        latent_dim: L.

    Example:
        >>> network = ImportanceEstimationNetwork(8, 4, 16, 6)
        >>> network(torch.zeros(2, 3, 8), torch.zeros(2, 4)).shape
        torch.Size([2, 6])
    """

    def __init__(self, feature_dim: int, task_dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.channel = nn.Parameter(torch.zeros(latent_dim))
        self.network: nn.Module | None = None
        if task_dim:
            first = Matrix(feature_dim + task_dim, hidden_dim)
            self.network = nn.Sequential(first, nn.GELU(), silent(hidden_dim, latent_dim))

    def forward(self, features: Tensor, task_embedding: Tensor | None) -> Tensor:
        """Return the importance: [1, L] without a task, [B, L] with; see the base class."""
        if self.network is None or task_embedding is None:
            return self.channel.exp()[None]
        told = torch.cat([features.mean(1), task_embedding.to(features.dtype)], 1)
        wanted: Tensor = self.channel + self.network(told)
        return wanted.exp()


@ALLOCATION_NETWORKS.register("network")
class BitAllocationNetwork(ChannelAllocator):
    """Bits per channel whose mean is the target, from importance.

    Half the logarithm of the importance is what reverse water-filling gives a channel; a small
    network adds to that, and `project_bits` meets the budget.

    Args:
        latent_dim: L.
        hidden_dim: hidden width.
        min_bits: fewest bits.
        max_bits: most.
        costs: as `ChannelAllocator`.
        soft: as `ChannelAllocator`.

    References:
        Cover and Thomas, "Elements of Information Theory", section 10.3.3.

    Example:
        >>> network = BitAllocationNetwork(3, 8, 2, 8)
        >>> network(torch.tensor([[1.0, 4.0, 16.0]]), 4.0)
        tensor([[3., 4., 5.]], grad_fn=<_EagerBackward>)
    """

    def __init__(
        self,
        latent_dim: int,
        hidden_dim: int,
        min_bits: int,
        max_bits: int,
        *,
        costs: tuple[int, ...] = (),
        soft: bool = False,
    ) -> None:
        super().__init__(latent_dim, hidden_dim, min_bits, max_bits, costs=costs, soft=soft)
        first, last = Matrix(latent_dim, hidden_dim), silent(hidden_dim, latent_dim)
        self.network = nn.Sequential(first, nn.GELU(), last)

    def wishes(self, importance: Tensor) -> Tensor:
        """Return half the logarithm of the importance and what the network adds, [G, L]."""
        logs = importance.log()
        wishes: Tensor = logs / (2 * math.log(2.0)) + self.network(logs)
        return wishes
