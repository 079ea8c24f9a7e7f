"""Linear layers whose product is `cmibq.ops.linear`: the same bits for every thread count."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmibq.ops.linear import linear, training_precision

__all__ = ["Matrix", "silent"]


class Matrix(nn.Linear):
    """A linear layer that computes in the dtype of what comes in, whatever its own is.

    Example:
        >>> Matrix(4, 3)(torch.zeros(2, 5, 4, dtype=torch.float64)).dtype
        torch.float64
    """

    def forward(self, x: Tensor, *, half: bool = False) -> Tensor:
        """Return ``x @ weight.T + bias``, [.., N], of `x` [.., K].

        Args:
            x: [.., K].
            half: bfloat16 products will do, in training; evaluation is in float32.
        """
        half = half and self.training
        eager = x.is_cpu and not torch.compiler.is_compiling()
        dtype = torch.bfloat16 if half and not eager else x.dtype
        weight, bias = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        if not (eager and self.training):
            return linear(x.to(dtype), weight, bias).to(x.dtype)
        there, back = training_precision(half=half)
        return linear(x, weight, bias, precision=there, grad_precision=back)


def silent(width: int, to: int) -> Matrix:
    """Return a layer that starts at 0."""
    layer = Matrix(width, to)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
