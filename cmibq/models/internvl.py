"""InternVL 2.5 and 3 as Hugging Face has them: tiles, pixel shuffle, a Qwen2 or Llama decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from cmibq.models.base import MODELS
from cmibq.models.llava import LLAVA
from cmibq.models.llava import image_features as plain_features
from cmibq.models.rows import INTERNVL_VISION_ROWS

__all__ = ["INTERNVL", "image_features"]


def image_features(model: nn.Module, images: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the projected features [V_i, C] of images; an image is its tiles in order.

    Args:
        model: the model.
        images: ``pixel_values`` [tiles, 3, H, W] and ``num_patches`` [U], tiles of each image.

    Raises:
        ModelError: the vision tower takes images of another size.
    """
    tiles = torch.stack(list(plain_features(model, {"pixel_values": images["pixel_values"]})))
    return [some.flatten(0, 1) for some in tiles.split(images["num_patches"].tolist())]


INTERNVL = replace(
    LLAVA,
    family="internvl",
    decoders=("qwen2", "llama", "qwen3", "mistral"),
    image_features=image_features,
    padding="left",
    towers=("model.vision_tower.encoder.layer",),
    tower_rows=INTERNVL_VISION_ROWS,
)
MODELS.register("internvl")(INTERNVL)
