"""CALM's composition module: projection, multi-head cross-attention, residual, layer norm."""

from __future__ import annotations

from torch import Tensor, nn

from cmibq.errors import ConfigError
from cmibq.fusion.base import FUSIONS, MAPPINGS, Fusion
from cmibq.ops.attention import Attended, attention
from cmibq.recipe.calm import CALMConfig

__all__ = ["CALMCompositionModule", "check_heads"]


def check_heads(anchor_dim: int, num_heads: int) -> None:
    """Refuse heads that do not divide the width.

    Raises:
        ConfigError: naming both and the nearest heads that do.
    """
    if num_heads < 1 or anchor_dim % num_heads:
        good = [h for h in range(1, 65) if anchor_dim % h == 0]
        raise ConfigError(
            f"num_heads is {num_heads}, which does not divide the anchor's width {anchor_dim};"
            f" allowed are {', '.join(map(str, good))}"
        )


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
        self.check(anchor_features, augmented_features)
        inner = self.cross_attention
        wq, wk, wv = inner.in_proj_weight.chunk(3)
        bq, bk, bv = inner.in_proj_bias.chunk(3)
        first = self.projection if isinstance(self.projection, nn.Linear) else None
        keys = self.projection(augmented_features) if first is None else augmented_features
        return attention(
            anchor_features.contiguous(),
            keys.contiguous(),
            wq,
            wk,
            wv,
            inner.out_proj.weight,
            heads=inner.num_heads,
            wp=None if first is None else first.weight,
            bp=None if first is None else first.bias,
            bq=bq,
            bk=bk,
            bv=bv,
            bo=inner.out_proj.bias,
            gamma=None if self.norm is None else self.norm.weight,
            beta=None if self.norm is None else self.norm.bias,
            eps=1e-5 if self.norm is None else self.norm.eps,
            need_entropy=need_entropy,
            need_weights=need_weights,
        )


@FUSIONS.register("cross_attention")
def _make(anchor_dim: int, augmented_dim: int, config: CALMConfig) -> Fusion:
    mapping = MAPPINGS[config.dimension_mapping](augmented_dim, anchor_dim, config)
    return CALMCompositionModule(
        anchor_dim, augmented_dim, config.attention_heads, norm=config.norm, mapping=mapping
    )
