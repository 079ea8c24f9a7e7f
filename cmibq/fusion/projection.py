"""Ways from the augmenting tower's width to the anchor's."""

from __future__ import annotations

from torch import Tensor, nn

from cmibq.fusion.base import MAPPINGS
from cmibq.fusion.multihead import check_heads, multihead
from cmibq.recipe.calm import CALMConfig

__all__ = ["AttentionMapping"]


@MAPPINGS.register("linear")
def _linear(augmented_dim: int, anchor_dim: int, _: CALMConfig) -> nn.Module:
    return nn.Linear(augmented_dim, anchor_dim)


@MAPPINGS.register("mlp")
def _mlp(augmented_dim: int, anchor_dim: int, _: CALMConfig) -> nn.Module:
    return nn.Sequential(
        nn.Linear(augmented_dim, anchor_dim), nn.GELU(), nn.Linear(anchor_dim, anchor_dim)
    )


class AttentionMapping(nn.Module):
    """``p + attention(Q = K = V = p)``, ``p = projection(augmented)``: tokens see each other first.

    The tokens keep their number and their places, so every fusion can follow. The output layer
    starts at zero: a fresh mapping is the linear one.

    Args:
        augmented_dim: width of the augmenting tower's features.
        anchor_dim: width of the anchor's features.
        num_heads: heads; must divide `anchor_dim`.

    Raises:
        ConfigError: the heads do not divide the width.

    Example:
        >>> import torch
        >>> mapping, y = AttentionMapping(4, 8, num_heads=2), torch.randn(1, 5, 4)
        >>> torch.equal(mapping(y), mapping.projection(y))
        True
    """

    def __init__(self, augmented_dim: int, anchor_dim: int, num_heads: int = 8) -> None:
        super().__init__()
        check_heads(anchor_dim, num_heads)
        self.projection = nn.Linear(augmented_dim, anchor_dim)
        self.self_attention = nn.MultiheadAttention(anchor_dim, num_heads, batch_first=True)
        nn.init.zeros_(self.self_attention.out_proj.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, Lk, anchor_dim] from [B, Lk, augmented_dim]."""
        inside = self.projection(features)
        return multihead(self.self_attention, inside, inside).out


@MAPPINGS.register("attention")
def _attention(augmented_dim: int, anchor_dim: int, config: CALMConfig) -> nn.Module:
    return AttentionMapping(augmented_dim, anchor_dim, config.attention_heads)
