"""The loss of an allocator that learns by trial, with the baseline that its costs are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from cmibq.alloc.reinforce import Baseline
from cmibq.nn.ib_layer import IBQuantizedLayer
from cmibq.train.peers import world

__all__ = ["baseline_of", "policy_loss"]


def baseline_of(layer: IBQuantizedLayer) -> Baseline | None:
    """Return a new baseline where the layer's allocator draws its bits, otherwise None."""
    return Baseline().to(next(layer.parameters()).device) if layer.allocation.draws else None


def policy_loss(layer: IBQuantizedLayer, baseline: Baseline | None, cost: Tensor) -> Tensor | None:
    """Return what teaches the policy what its last trial cost; None without a trial.

    Args:
        layer: whose allocator tried bits in the last forward pass.
        baseline: the running mean of costs.
        cost: the loss of the batch, a scalar; the mean over processes counts.
    """
    found = getattr(layer.allocation, "log_policy", None)
    if baseline is None or not isinstance(found, Tensor):
        return None
    layer.allocation.log_policy = None  # type: ignore[assignment]  # frozen maps make no trial
    told = cost.detach().clone()
    if world() > 1:
        torch.distributed.all_reduce(told)
        told = told / world()
    return baseline.loss(told, found)
