"""Networks that say how important channels are, and how many bits each gets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cmibq.ops.alloc import project_bits
from cmibq.registry import Registry

__all__ = [
    "ALLOCATION_NETWORKS",
    "IMPORTANCE",
    "BitAllocationNetwork",
    "ImportanceEstimationNetwork",
]

IMPORTANCE: Registry[type[nn.Module]] = Registry("importance")
"""Classes made with (feature_dim, task_dim, hidden_dim, latent_dim), see the network below."""

ALLOCATION_NETWORKS: Registry[type[BitAllocationNetwork]] = Registry("allocation network")
"""Classes made with (latent_dim, hidden_dim, min_bits, max_bits), see the network below."""


@IMPORTANCE.register("network")
class ImportanceEstimationNetwork(nn.Module):
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
            last = nn.Linear(hidden_dim, latent_dim)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            first = nn.Linear(feature_dim + task_dim, hidden_dim)
            self.network = nn.Sequential(first, nn.GELU(), last)

    def forward(self, features: Tensor, task_embedding: Tensor | None) -> Tensor:
        """Return the importance, > 0: [1, L] without a task, [B, L] with.

        Args:
            features: [B, T, D].
            task_embedding: [B, E], or None.
        """
        if self.network is None or task_embedding is None:
            return self.channel.exp()[None]
        told = torch.cat([features.mean(1), task_embedding.to(features.dtype)], 1)
        wanted: Tensor = self.channel + self.network(told)
        return wanted.exp()


@ALLOCATION_NETWORKS.register("network")
class BitAllocationNetwork(nn.Module):
    """Bits per channel whose mean is the target, from importance.

    Half the logarithm of the importance is what reverse water-filling gives a channel; a small
    network adds to that, and `project_bits` meets the budget.

    Args:
        latent_dim: L.
        hidden_dim: hidden width.
        min_bits: fewest bits.
        max_bits: most.

    References:
        Cover and Thomas, "Elements of Information Theory", section 10.3.3.

    Example:
        >>> network = BitAllocationNetwork(3, 8, 2, 8)
        >>> network(torch.tensor([[1.0, 4.0, 16.0]]), 4.0)
        tensor([[3., 4., 5.]], grad_fn=<_EagerBackward>)
    """

    def __init__(self, latent_dim: int, hidden_dim: int, min_bits: int, max_bits: int) -> None:
        super().__init__()
        self.min_bits, self.max_bits = min_bits, max_bits
        last = nn.Linear(hidden_dim, latent_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(latent_dim, hidden_dim), nn.GELU(), last)

    def wishes(self, importance: Tensor) -> Tensor:
        """Return what channels would like, up to a constant, [B, L]."""
        logs = importance.log()
        wishes: Tensor = logs / (2 * math.log(2.0)) + self.network(logs)
        return wishes

    def forward(self, importance: Tensor, target_bits: float) -> Tensor:
        """Return bits [B, L], each row with mean `target_bits`."""
        wishes = self.wishes(importance).contiguous()
        return project_bits(wishes, target_bits, self.min_bits, self.max_bits)
