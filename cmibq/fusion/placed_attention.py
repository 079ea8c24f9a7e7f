"""Gated cross-attention whose queries and keys know where in the image they lie."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from cmibq.fusion.base import FUSIONS, MAPPINGS, Fusion
from cmibq.fusion.gated_attention import GatedAttention
from cmibq.fusion.grid import grid_positions
from cmibq.fusion.multihead import check_heads
from cmibq.ops.attention import Attended
from cmibq.recipe.calm import CALMConfig

__all__ = ["PlacedAttention", "placed"]


def placed(features: Tensor) -> Tensor:
    """Return normalised features plus `grid_positions`, in their dtype.

    Args:
        features: [B, L, C] of a square of patches behind at most eight other tokens.

    Raises:
        ConfigError: the patches are no square.
    """
    places = grid_positions(features.shape[1], features.shape[2], features.device)
    level = functional.layer_norm(features, features.shape[-1:])
    return level + places.to(level.dtype)


class PlacedAttention(GatedAttention):
    """``anchor + tanh(30 gate) * attention(Q = placed(anchor), K = V = map(placed(augmented)))``.

    A frozen tower need not keep places in its last layers: two empty patches may look alike to it,
    and attention then cannot tell which patch of the other tower lies where. Here normalised
    features get sines of their place before attention (`grid_positions`). Parameters are those of
    `GatedAttention`, which is what this is without places; it also starts as the anchor.

    Args:
        anchor_dim: width of the anchor's features.
        augmented_dim: width of the augmenting tower's features.
        num_heads: heads; must divide `anchor_dim`.
        mapping: module [B, Lk, augmented_dim] -> [B, Lk, anchor_dim]; None = a linear layer.

    Raises:
        ConfigError: the heads do not divide the width.

    Example:
        >>> import torch
        >>> module, x = PlacedAttention(8, 4, num_heads=2), torch.randn(1, 5, 8)
        >>> torch.equal(module(x, torch.randn(1, 10, 4)), x)
        True
    """

    def attend(
        self,
        anchor_features: Tensor,
        augmented_features: Tensor,
        *,
        need_entropy: bool = False,
        need_weights: bool = False,
    ) -> Attended:
        """See `Fusion.attend`.

        Raises:
            ConfigError: features do not fit, or the patches of a tower are no square.
        """
        self.check(anchor_features, augmented_features)
        seen = self.attention.gated(
            placed(anchor_features),
            placed(augmented_features),
            self.factor(),
            residual=False,
            recompute=self.recompute,
            need_entropy=need_entropy,
            need_weights=need_weights,
        )
        return seen._replace(out=anchor_features + seen.out.to(anchor_features.dtype))


@FUSIONS.register("placed_attention")
def _make(anchor_dim: int, augmented_dim: int, config: CALMConfig) -> Fusion:
    check_heads(anchor_dim, config.attention_heads)
    mapping: nn.Module = MAPPINGS[config.dimension_mapping](augmented_dim, anchor_dim, config)
    return PlacedAttention(anchor_dim, augmented_dim, config.attention_heads, mapping=mapping)
