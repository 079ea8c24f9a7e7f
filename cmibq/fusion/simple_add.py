"""Adding the mapped features patch by patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.fusion.base import FUSIONS, MAPPINGS, Fusion
from cmibq.fusion.cross_attention import mapped
from cmibq.fusion.grid import square_grid
from cmibq.ops.attention import Attended
from cmibq.recipe.calm import CALMConfig

__all__ = ["SimpleAdd", "resize_tokens"]


def resize_tokens(features: Tensor, tokens: int) -> Tensor:
    """Return features at the patches of another grid.

    Patches are interpolated (bilinear, antialiased where there get fewer); the first token before
    them goes to the first of the other grid, the others get zeros.

    Args:
        features: [B, Lk, D] of a square of patches.
        tokens: Lq.

    Returns:
        [B, Lq, D].

    Raises:
        ConfigError: one of the grids is no square.
    """
    if features.shape[1] == tokens:
        return features
    (here, edge), (there, old) = square_grid(tokens), square_grid(features.shape[1])
    grid = features[:, there:].transpose(1, 2).unflatten(2, (old, old))
    fewer = {"antialias": True} if edge < old else {}
    made = functional.interpolate(grid.float(), (edge, edge), mode="bilinear", **fewer)
    patches = made.flatten(2).transpose(1, 2).to(features.dtype)
    kept = min(here, there, 1)
    empty = features.new_zeros(features.shape[0], here - kept, features.shape[2])
    return torch.cat([features[:, :kept], empty, patches], 1)


class SimpleAdd(Fusion):
    """``anchor + mapping(augmented)``, token by token.

    Where the towers have different grids, the augmenting tower's is resized (`resize_tokens`). The
    mapping's last layer starts at zero: the composed tower starts as the anchor.

    Args:
        anchor_dim: width of the anchor's features.
        augmented_dim: width of the augmenting tower's features.
        config: its `dimension_mapping` and, for mappings that need them, heads are used.

    Example:
        >>> module, x = SimpleAdd(8, 4, CALMConfig(attention_heads=2)), torch.randn(1, 5, 8)
        >>> torch.equal(module(x, torch.randn(1, 10, 4)), x)
        True
    """

    def __init__(self, anchor_dim: int, augmented_dim: int, config: CALMConfig) -> None:
        super().__init__(anchor_dim, augmented_dim)
        self.projection = MAPPINGS[config.dimension_mapping](augmented_dim, anchor_dim, config)
        # The last layer that is not inside an attention (whose own output starts at zero).
        last = [m for m in self.projection.modules() if type(m) is nn.Linear][-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def attend(
        self,
        anchor_features: Tensor,
        augmented_features: Tensor,
        *,
        need_entropy: bool = False,
        need_weights: bool = False,
    ) -> Attended:
        """See `Fusion.attend`; there is no attention, so entropy and weights are None."""
        self.check(anchor_features, augmented_features)
        there = resize_tokens(augmented_features, anchor_features.shape[1])
        out = anchor_features + mapped(self.projection, there)
        return Attended(out.to(anchor_features.dtype), None, None)


FUSIONS.register("simple_add")(SimpleAdd)
