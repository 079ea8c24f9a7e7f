"""A composed vision tower inside a Hugging Face vision-language model."""

from __future__ import annotations

from typing import Any

from torch import nn

from cmibq.errors import ModelError
from cmibq.models.composed import CALMVisionTower
from cmibq.recipe.calm import CALMConfig

__all__ = ["attach_calm", "calm_of"]


def _owner(model: nn.Module) -> Any:
    """Return the module that holds ``vision_tower``."""
    for path in ("", "model", "model.model"):
        found: Any = model
        for part in filter(None, path.split(".")):
            found = getattr(found, part, None)
        if isinstance(getattr(found, "vision_tower", None), nn.Module):
            return found
    raise ModelError(
        f"{type(model).__name__} has no vision_tower; compose a LLaVA-like model, or build a"
        " CALMVisionTower yourself"
    )


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
    owner = _owner(model)
    tower = CALMVisionTower(owner.vision_tower, augmenting, config or CALMConfig())
    owner.vision_tower = tower.train(model.training)
    return tower


def calm_of(model: nn.Module) -> CALMVisionTower | None:
    """Return the composed tower of a model, or None."""
    return next((m for m in model.modules() if isinstance(m, CALMVisionTower)), None)
