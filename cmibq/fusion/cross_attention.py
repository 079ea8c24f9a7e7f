"""CALM's composition module: projection, multi-head cross-attention, residual, layer norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cmibq.fusion.base import FUSIONS, MAPPINGS, Fusion
from cmibq.fusion.multihead import check_heads, multihead
from cmibq.ops.attention import Attended
from cmibq.recipe.calm import CALMConfig

__all__ = ["CALMCompositionModule", "check_heads"]


class CALMCompositionModule(Fusion):
    """``LayerNorm(anchor + attention(Q = anchor, K = V = projection(augmented)))``.

    Args:
        anchor_dim: width of the anchor's features.
        augmented_dim: width of the augmenting tower's features.
        num_heads: heads; must divide `anchor_dim`.
        norm: "post", or "none" for checkpoints of the public fork, which has no layer norm.
        mapping: module [B, Lk, augmented_dim] -> [B, Lk, anchor_dim]; None = a linear layer.

    Raises:
        ConfigError: the heads do not divide the width.

    References:
        Bansal et al., "LLM Augmented LLMs: Expanding Capabilities through Composition" (CALM),
        ICLR 2024, section 3.

    Example:
        >>> import torch
        >>> module = CALMCompositionModule(8, 4, num_heads=2)
        >>> module(torch.zeros(1, 3, 8), torch.zeros(1, 5, 4)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        anchor_dim: int,
        augmented_dim: int,
        num_heads: int = 8,
        *,
        norm: str = "post",
        mapping: nn.Module | None = None,
    ) -> None:
        super().__init__(anchor_dim, augmented_dim)
        check_heads(anchor_dim, num_heads)
        self.projection = nn.Linear(augmented_dim, anchor_dim) if mapping is None else mapping
        self.cross_attention = nn.MultiheadAttention(anchor_dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(anchor_dim) if norm == "post" else None

    def attend(
        self,
        anchor_features: Tensor,
        augmented_features: Tensor,
        *,
        need_entropy: bool = False,
        need_weights: bool = False,
    ) -> Attended:
        """See `Fusion.attend`."""
        return self.gated(
            anchor_features,
            augmented_features,
            None,
            recompute=self.recompute,
            need_entropy=need_entropy,
            need_weights=need_weights,
        )

    def gated(
        self, anchor_features: Tensor, augmented_features: Tensor, gate: Tensor | None, **need: Any
    ) -> Attended:
        """Do what `attend` does, with a factor on what attention adds.

        Args:
            anchor_features: [B, Lq, anchor_dim].
            augmented_features: [B, Lk, augmented_dim].
            gate: scalar or [anchor_dim]; None = 1.
            **need: as of `attend`, and `recompute` and `residual` of `multihead`.
        """
        self.check(anchor_features, augmented_features)
        first = self.projection if type(self.projection) is nn.Linear else None
        keys = mapped(self.projection, augmented_features) if first is None else augmented_features
        return multihead(
            self.cross_attention,
            anchor_features,
            keys,
            first=first,
            gate=gate,
            norm=self.norm,
            **need,
        )


def mapped(mapping: nn.Module, features: Tensor) -> Tensor:
    """Return the features in the anchor's width, in the dtype of the mapping's parameters.

    Args:
        mapping: of `MAPPINGS`.
        features: [B, Lk, augmented_dim], any floating dtype.
    """
    stored = next(mapping.parameters(), features)
    made: Tensor = mapping(features.to(stored.dtype))
    return made


@FUSIONS.register("cross_attention")
def _make(anchor_dim: int, augmented_dim: int, config: CALMConfig) -> Fusion:
    check_heads(anchor_dim, config.attention_heads)
    mapping = MAPPINGS[config.dimension_mapping](augmented_dim, anchor_dim, config)
    return CALMCompositionModule(
        anchor_dim, augmented_dim, config.attention_heads, norm=config.norm, mapping=mapping
    )
