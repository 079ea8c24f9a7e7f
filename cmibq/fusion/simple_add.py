"""Adding the projected features token by token, where both towers have the same tokens."""

from __future__ import annotations

from torch import Tensor

from cmibq.errors import ConfigError
from cmibq.fusion.base import FUSIONS, MAPPINGS, Fusion
from cmibq.ops.attention import Attended
from cmibq.recipe.calm import CALMConfig

__all__ = ["SimpleAdd"]


class SimpleAdd(Fusion):
    """``anchor + mapping(augmented)``."""

    def __init__(self, anchor_dim: int, augmented_dim: int, config: CALMConfig) -> None:
        super().__init__(anchor_dim, augmented_dim)
        self.projection = MAPPINGS[config.dimension_mapping](augmented_dim, anchor_dim, config)

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
        if anchor_features.shape[1] != augmented_features.shape[1]:
            raise ConfigError(
                f"simple_add needs as many tokens in both towers, not {anchor_features.shape[1]}"
                f" and {augmented_features.shape[1]}; choose gated_attention"
            )
        return Attended(anchor_features + self.projection(augmented_features), None, None)


FUSIONS.register("simple_add")(SimpleAdd)
