"""A composed vision tower inside a Hugging Face vision-language model.

    tower = attach_calm(model, augmenting="models/dinov2-large", processor=processor)

Checkpoints saved afterwards name the tower in config.json and hold all of its weights. Processes
that import this module (or `cmibq.integrations.transformers`) rebuild it in ``from_pretrained``; in
others loading fails.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from torch import nn

from cmibq.errors import ConfigError, ModelError
from cmibq.integrations.glue import register
from cmibq.models.composed import CALMVisionTower
from cmibq.models.composed_files import open_image_processor, open_tower
from cmibq.models.composed_host import (
    KEY,
    calm_of,
    describe_,
    host_of,
    put_,
    read_layer,
)
from cmibq.models.composed_processor import pack_processor_, unpack_processor_
from cmibq.models.towers import parts_of, vision_half
from cmibq.recipe.calm import CALMConfig

__all__ = ["attach_calm", "calm_of", "check_calm", "detach_calm"]


def _owner(model: nn.Module) -> Any:
    owner = host_of(model)
    if isinstance(owner.vision_tower, CALMVisionTower):
        raise ConfigError(
            f"{type(model).__name__} has a composed tower already; take calm_of(model)"
        )
    return owner


def _configured(model: nn.Module, anchor: nn.Module, config: CALMConfig | None) -> CALMConfig:
    """Return the configuration with the layer that the host reads: deeper fusions would be dead."""
    told, read = config or CALMConfig(), read_layer(model, anchor)
    if told.select_layer not in (-1, read):
        raise ConfigError(
            f"select_layer is {told.select_layer}, but {type(model).__name__} reads layer {read} of"
            " its vision tower (vision_feature_layer); give that, or leave it out"
        )
    return replace(told, select_layer=read)


def attach_calm(
    model: nn.Module,
    augmenting: nn.Module | str | os.PathLike[str],
    config: CALMConfig | None = None,
    *,
    processor: Any = None,
    augmenting_processor: Any = None,
) -> CALMVisionTower:
    """Compose the vision tower of a model with another one, in place.

    Args:
        model: `LlavaForConditionalGeneration` or alike (LLaVA-NeXT, LLaVA-OneVision).
        augmenting: a Hugging Face vision tower, or the folder of one.
        config: where and how they meet; None = the defaults. `select_layer` becomes the layer
            that the model reads.
        processor: of the model; its ``image_processor`` then makes pixels of both towers (one
            packed tensor). Without it the augmenting tower gets the anchor's pixels resized.
        augmenting_processor: image processor of the augmenting tower; None = that of its folder.

    Returns:
        The composed tower, which is now the model's; `save_pretrained` of the model saves it.

    Raises:
        ConfigError: the model has a composed tower already, a processor does not fit its tower, or
            see `CALMConfig`.
        ModelError: the model has no vision tower, or a tower is of no known family.
    """
    register()
    owner = _owner(model)
    if processor is not None and not hasattr(processor, "image_processor"):
        raise ConfigError(
            f"processor is {type(processor).__name__}, which has no image_processor; pass the"
            " processor of the model (AutoProcessor)"
        )
    anchor = vision_half(owner.vision_tower)
    if parts_of(anchor).kind.layout != "tokens":
        raise ModelError(
            f"{type(anchor).__name__} gives maps, and {type(model).__name__} reads tokens; it can"
            " be the augmenting tower"
        )
    told = _configured(model, anchor, config)
    if not isinstance(augmenting, nn.Module):
        told = replace(told, augmenting_model=str(augmenting))
        if processor is not None and augmenting_processor is None:
            augmenting_processor = open_image_processor(augmenting)
        augmenting = open_tower(augmenting)
    first = next(anchor.parameters())
    tower = CALMVisionTower(anchor, augmenting.to(first.device, first.dtype), told)
    tower.calm_modules.to(first.device)
    if processor is not None:
        _pack(processor, augmenting_processor, tower)
    put_(model, tower)
    describe_(model)
    return tower


def _pack(processor: Any, augmenting: Any, tower: CALMVisionTower) -> None:
    before = processor.image_processor
    try:
        pack_processor_(processor, augmenting).check(tower.image_sizes)
    except BaseException:
        unpack_processor_(processor)
        tower.detach()
        raise
    tower.processors = before, augmenting


def detach_calm(model: nn.Module, processor: Any = None) -> nn.Module:
    """Give a model its anchor back, alone; fusions and augmenting tower are dropped.

    Args:
        model: with a composed tower.
        processor: of the model, which gets its image processor back.

    Returns:
        The anchor, which is now the model's vision tower.

    Raises:
        ModelError: the model has no composed tower.
    """
    owner = host_of(model)
    if not isinstance(owner.vision_tower, CALMVisionTower):
        raise ModelError(f"{type(model).__name__} has no composed tower; nothing to detach")
    owner.vision_tower = owner.vision_tower.detach()
    describe_(model)
    if processor is not None:
        unpack_processor_(processor)
    anchor: nn.Module = owner.vision_tower
    return anchor


def check_calm(model: nn.Module) -> None:
    """Refuse a model whose composed tower is not the one that its configuration names.

    Raises:
        ModelError: the tower is missing, or is not in config.json.
    """
    config = getattr(model, "config", None)
    vision = getattr(config, "vision_config", None)  # where TinyLLaVA's describes it
    named = getattr(config, KEY, None) or getattr(vision, KEY, None)
    tower, name = calm_of(model), type(model).__name__
    if named and tower is None:
        raise ModelError(
            f"config.json of {name} names a composed tower, but the model has none and would run"
            " uncomposed; import cmibq.integrations.transformers before loading it"
        )
    if tower is not None and not named:
        raise ModelError(f"{name} has a composed tower that its configuration lacks; attach_calm")
