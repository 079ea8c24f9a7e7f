"""Ways to share bits out that learn nothing: all alike, and by the variance of channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmibq.alloc.bottleneck import ALLOCATION_NETWORKS, ChannelAllocator

__all__ = ["FlatAllocation", "VarianceAllocation"]


@ALLOCATION_NETWORKS.register("flat")
class FlatAllocation(ChannelAllocator):
    """The same bits for every channel; at evaluation the first ones take what is left over.

    Example:
        >>> FlatAllocation(4, 8, 2, 8)(torch.tensor([[1.0, 4.0, 9.0, 0.1]]), 2.5)
        tensor([[2.5000, 2.5000, 2.5000, 2.5000]])
    """

    reads = ""

    def wishes(self, importance: Tensor) -> Tensor:
        """Return zeros, [G, L]."""
        return torch.zeros_like(importance)


@ALLOCATION_NETWORKS.register("variance")
class VarianceAllocation(ChannelAllocator):
    """Reverse water-filling on the running variance of the channels, as in transform coding.

    References:
        Huang and Schultheiss, "Block quantization of correlated Gaussian random variables", IEEE
        Transactions on Communications Systems 11, 1963: half the binary logarithm of the variance.

    Example:
        >>> VarianceAllocation(3, 8, 0, 8)(torch.tensor([[1.0, 4.0, 16.0]]), 2.0)
        tensor([[1., 2., 3.]])
    """

    reads = "variance"

    def wishes(self, importance: Tensor) -> Tensor:
        """Return half the binary logarithm of the variance, [G, L]."""
        return importance.log() / (2 * math.log(2.0))
