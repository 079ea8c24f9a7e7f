"""Bits chosen by reinforcement learning: a policy that tries, and is told what it cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmibq.alloc.bottleneck import ALLOCATION_NETWORKS, BitAllocationNetwork
from cmibq.errors import ModelError

__all__ = ["Baseline", "ReinforceAllocation"]


@ALLOCATION_NETWORKS.register("reinforce")
class ReinforceAllocation(BitAllocationNetwork):
    """The allocation network as a policy: normal noise about its wishes while training.

    No gradient runs through the bits; the network learns from `Baseline.loss` only, which is added
    to the loss of the step. The score, the gradient of the logarithm of the policy, is kept from
    the last training step.

    References:
        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
        learning", Machine Learning 8, 1992.
    """

    draws = True
    spread = 0.5
    """Standard deviation of the wishes that are tried, in bits."""
    log_policy: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"log_policy": None}  # of a graph, which nothing copies

    def forward(
        self, importance: Tensor, target_bits: float, noise: Tensor | None = None
    ) -> Tensor:
        """Return the bits of a trial, [G, L]; see the base class.

        Raises:
            ModelError: there is no noise to try with.
        """
        if noise is None:
            raise ModelError("reinforce needs noise [G, L] in training; the layer hands it in")
        wishes = self.wishes(importance)
        tried = wishes.detach() + self.spread * noise
        self.log_policy = -((tried - wishes) / self.spread).square().sum(1) / 2
        bits = self.meet(tried, target_bits)
        return bits.detach() + 0.0 * wishes.sum() if self.level is None else bits


class Baseline(nn.Module):
    """The running mean cost that a trial is compared with; it lives beside the layer.

    Args:
        momentum: weight of a step in the running mean.

    Example:
        >>> baseline = Baseline()
        >>> bool(baseline.loss(torch.tensor([3.0]), torch.tensor([-1.0])) == 0)
        True
        >>> float(baseline.loss(torch.tensor([5.0]), torch.tensor([-1.0])))
        -2.0
    """

    mean: Tensor
    seen: Tensor

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def loss(self, cost: Tensor, log_policy: Tensor) -> Tensor:
        """Return what pulls the policy towards cheap trials, a scalar, and take the cost in.

        Args:
            cost: [B] or a scalar, what each sample cost (no gradient runs through it).
            log_policy: [B], or [1] where all samples share a trial.
        """
        found = cost.detach().mean() if len(log_policy) == 1 else cost.detach()
        with torch.no_grad():
            self.mean.lerp_(found.mean().to(self.mean), torch.where(self.seen > 0, 0.0, 1.0))
        gain = found - self.mean
        with torch.no_grad():
            self.mean.lerp_(found.mean().to(self.mean), self.momentum)
            self.seen.add_(1)
        return (gain * log_policy).mean()
