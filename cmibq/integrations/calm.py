"""A composed vision tower inside a Hugging Face vision-language model."""

from __future__ import annotations

from torch import nn

from cmibq.models.composed import CALMVisionTower
from cmibq.models.composed_host import calm_of, describe_, host_of
from cmibq.recipe.calm import CALMConfig

__all__ = ["attach_calm", "calm_of"]


def attach_calm(
    model: nn.Module, augmenting: nn.Module, config: CALMConfig | None = None
) -> CALMVisionTower:
    """Compose the vision tower of a model with another one, in place.

    Args:
        model: `LlavaForConditionalGeneration` or alike.
        augmenting: a Hugging Face vision tower.
        config: where and how they meet; None = the defaults.

    Returns:
        The composed tower, which is now the model's.
    """
    owner = host_of(model)
    tower = CALMVisionTower(owner.vision_tower, augmenting, config or CALMConfig())
    owner.vision_tower = tower.train(model.training)
    describe_(model)
    return tower
