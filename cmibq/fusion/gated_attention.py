"""Cross-attention behind a gate that starts at zero: the composed tower starts as the anchor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmibq.fusion.base import FUSIONS, MAPPINGS, Fusion
from cmibq.fusion.cross_attention import CALMCompositionModule
from cmibq.ops.attention import Attended
from cmibq.recipe.calm import CALMConfig

__all__ = ["GatedAttention"]


class GatedAttention(Fusion):
    """``anchor + tanh(gate) * (cross_attention(anchor, augmented) - anchor)``, without a norm.

    Args:
        anchor_dim: width of the anchor's features.
        augmented_dim: width of the augmenting tower's features.
        num_heads: heads; must divide `anchor_dim`.
        mapping: module [B, Lk, augmented_dim] -> [B, Lk, anchor_dim]; None = a linear layer.

    References:
        Alayrac et al., "Flamingo", NeurIPS 2022: gates that start at zero.
    """

    def __init__(
        self,
        anchor_dim: int,
        augmented_dim: int,
        num_heads: int = 8,
        *,
        mapping: nn.Module | None = None,
    ) -> None:
        super().__init__(anchor_dim, augmented_dim)
        self.attention = CALMCompositionModule(
            anchor_dim, augmented_dim, num_heads, norm="none", mapping=mapping
        )
        self.gate = nn.Parameter(torch.zeros(()))

    def attend(
        self,
        anchor_features: Tensor,
        augmented_features: Tensor,
        *,
        need_entropy: bool = False,
        need_weights: bool = False,
    ) -> Attended:
        """See `Fusion.attend`."""
        seen = self.attention.attend(
            anchor_features,
            augmented_features,
            need_entropy=need_entropy,
            need_weights=need_weights,
        )
        out = anchor_features + self.gate.tanh() * (seen.out - anchor_features)
        return Attended(out, seen.entropy, seen.weights)


@FUSIONS.register("gated_attention")
def _make(anchor_dim: int, augmented_dim: int, config: CALMConfig) -> Fusion:
    mapping = MAPPINGS[config.dimension_mapping](augmented_dim, anchor_dim, config)
    return GatedAttention(anchor_dim, augmented_dim, config.attention_heads, mapping=mapping)
