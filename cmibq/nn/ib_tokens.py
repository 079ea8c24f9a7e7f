"""Token gain: how much of the budget each token gets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cmibq.ops.alloc import project_bits, round_bits
from cmibq.ops.matrix import Matrix

__all__ = ["STEP", "UNIT", "TokenGain"]

UNIT = 2
"""Level of the gain 1."""
STEP = 1 / UNIT
_WIDTH = 64


class TokenGain(nn.Module):
    """A factor of the bits of every token, from 0 (dropped), with mean 1 over a sample.

    Levels are multiples of one half; their codes are charged by a learned table of
    probabilities, as they are coded.

    Args:
        feature_dim: D.
        task_dim: E; 0 without tasks.
        levels: how many levels there are, from gain 0 on; at least 3.

    Example:
        >>> gain = TokenGain(4, 0, 8)
        >>> gain(torch.zeros(1, 3, 4), None, 2.0, 8)
        tensor([[1., 1., 1.]], grad_fn=<_EagerBackward>)
    """

    def __init__(self, feature_dim: int, task_dim: int, levels: int) -> None:
        super().__init__()
        self.count = levels
        self.features = Matrix(feature_dim, _WIDTH)
        self.task = Matrix(task_dim, _WIDTH, bias=False) if task_dim else None
        self.last = Matrix(_WIDTH, 1, bias=False)  # a shift of all scores changes nothing
        nn.init.zeros_(self.last.weight)
        self.logits = nn.Parameter(torch.zeros(levels))

    def top(self, target_bits: float, max_bits: int) -> int:
        """Return the highest level whose budget channels of `max_bits` can hold."""
        most = math.floor(max_bits / (target_bits * STEP) + 1e-9) if target_bits > 0 else UNIT
        return min(self.count - 1, most)

    def forward(
        self, features: Tensor, task_embedding: Tensor | None, target_bits: float, max_bits: int
    ) -> Tensor:
        """Return gains [B, T] from 0, with mean 1 in every row.

        Args:
            features: [B, T, D].
            task_embedding: [B, E], or None.
            target_bits: mean bits per element, which limit the highest gain.
            max_bits: most bits of a channel.
        """
        hidden = self.features(features)
        if self.task is not None and task_embedding is not None:
            hidden = hidden + self.task(task_embedding)[:, None]
        score = self.last(torch.nn.functional.gelu(hidden))[..., 0]
        return project_bits(score.contiguous(), 1.0, 0.0, self.top(target_bits, max_bits) * STEP)

    def levels(self, gains: Tensor, target_bits: float, max_bits: int) -> Tensor:
        """Return the levels nearest to gains, with mean exactly 1: int64 [B, T]."""
        places = (gains.detach() * UNIT).contiguous()
        top = self.top(target_bits, max_bits)
        return round_bits(places, 0, top, UNIT * gains.shape[1]).long()

    def table(self) -> Tensor:
        """Return the bits that the code of each level takes, [levels]."""
        return -self.logits.log_softmax(0) / math.log(2.0)

    def cost(self, gains: Tensor) -> Tensor:
        """Return the bits that levels take, [B]; between two levels in proportion.

        Args:
            gains: [B, T], multiples of one half where they are final.
        """
        table = self.table().to(gains.dtype)
        place = (gains * UNIT).clamp(0, self.count - 1)
        below = place.detach().floor().clamp(max=self.count - 2)
        share, at = place - below, below.long()
        return ((1 - share) * table[at] + share * table[at + 1]).sum(1)
