"""Ways from the augmenting tower's width to the anchor's."""

from __future__ import annotations

from torch import nn

from cmibq.fusion.base import MAPPINGS
from cmibq.recipe.calm import CALMConfig


@MAPPINGS.register("linear")
def _linear(augmented_dim: int, anchor_dim: int, _: CALMConfig) -> nn.Module:
    return nn.Linear(augmented_dim, anchor_dim)


@MAPPINGS.register("mlp")
def _mlp(augmented_dim: int, anchor_dim: int, _: CALMConfig) -> nn.Module:
    return nn.Sequential(
        nn.Linear(augmented_dim, anchor_dim), nn.GELU(), nn.Linear(anchor_dim, anchor_dim)
    )
