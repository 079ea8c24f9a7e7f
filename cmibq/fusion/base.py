"""What every fusion of two towers is, and the registries of fusions and of dimension mappings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cmibq.errors import ConfigError, check_tokens
from cmibq.ops.attention import Attended
from cmibq.recipe.calm import CALMConfig
from cmibq.registry import Registry

__all__ = ["FUSIONS", "MAPPINGS", "Fusion", "build_fusion", "check_fusion"]


class Fusion(nn.Module):
    """One composition layer: what the anchor gets from the augmenting tower at one depth.

    Features may have another dtype than the parameters: products are those of the wider one
    (bfloat16 features stay bfloat16), and the result has the dtype of the anchor's features.

    Args:
        anchor_dim: width of the anchor's features.
        augmented_dim: width of the augmenting tower's features.

    Attributes:
        recompute: save next to nothing for the backward pass, which then computes attention again:
            about half the memory for 1.2 to 1.7 times the time.
    """

    def __init__(self, anchor_dim: int, augmented_dim: int) -> None:
        super().__init__()
        self.anchor_dim, self.augmented_dim = anchor_dim, augmented_dim
        self.recompute = False

    def attend(
        self,
        anchor_features: Tensor,
        augmented_features: Tensor,
        *,
        need_entropy: bool = False,
        need_weights: bool = False,
    ) -> Attended:
        """Return what the anchor's next layer reads, and what was looked at.

        Args:
            anchor_features: [B, Lq, anchor_dim].
            augmented_features: [B, Lk, augmented_dim].
            need_entropy: also return the entropy of each row of attention, [B, H, Lq] in nats.
            need_weights: also return attention averaged over heads, [B, Lq, Lk].
        """
        raise NotImplementedError

    def forward(self, anchor_features: Tensor, augmented_features: Tensor) -> Tensor:
        """Return what the anchor's next layer reads, [B, Lq, anchor_dim]; see `attend`."""
        return self.attend(anchor_features, augmented_features).out

    def check(self, anchor_features: Tensor, augmented_features: Tensor) -> None:
        """Refuse features of other widths, of another batch, or that are no floats.

        Their values are not looked at: NaN in one tower's features comes out as NaN.

        Raises:
            ConfigError: naming the argument, its shape and what is allowed.
        """
        for name, given, width in (
            ("anchor_features", anchor_features, self.anchor_dim),
            ("augmented_features", augmented_features, self.augmented_dim),
        ):
            check_tokens(name, given.shape)
            if not given.is_floating_point():
                raise ConfigError(f"{name} is {given.dtype}; give features in a floating dtype")
            if given.shape[-1] != width:
                raise ConfigError(
                    f"{name} has width {given.shape[-1]}, but this fusion was made for {width}"
                )
        if anchor_features.shape[0] != augmented_features.shape[0]:
            raise ConfigError(
                f"anchor_features has {anchor_features.shape[0]} images, augmented_features"
                f" {augmented_features.shape[0]}; give both towers the same images"
            )


FUSIONS: Registry[Callable[[int, int, CALMConfig], Fusion]] = Registry("fusion strategy")
"""Name -> maker of a fusion from (anchor_dim, augmented_dim, configuration)."""

MAPPINGS: Registry[Callable[[int, int, CALMConfig], nn.Module]] = Registry("dimension mapping")
"""Name -> maker of the module [B, Lk, augmented_dim] -> [B, Lk, anchor_dim]."""


def check_fusion(anchor_dim: int, augmented_dim: int, config: CALMConfig) -> None:
    """Refuse what `build_fusion` would refuse, before any weights are read or made.

    Raises:
        ConfigError: as `build_fusion`.

    Example:
        >>> check_fusion(1024, 768, CALMConfig(attention_heads=12))
        Traceback (most recent call last):
        ...
        cmibq.errors.ConfigError: num_heads is 12, which does not divide the anchor's width 1024;...
    """
    with torch.device("meta"):
        build_fusion(anchor_dim, augmented_dim, config)


def build_fusion(anchor_dim: int, augmented_dim: int, config: CALMConfig) -> Fusion:
    """Return a fresh fusion of the configured strategy.

    Raises:
        ConfigError: the strategy or the mapping is unknown, or the heads do not divide the width.
    """
    return FUSIONS[config.fusion_strategy](anchor_dim, augmented_dim, config)
