"""LLaVA-OneVision as Hugging Face has it: images alone in their sample are cut into tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from cmibq.models.base import MODELS
from cmibq.models.llava import LLAVA
from cmibq.models.llava import image_features as plain_features

__all__ = ["LLAVA_ONEVISION", "image_features"]


def image_features(model: nn.Module, images: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the projected features [V_i, C] of images, ends of rows included.

    Args:
        model: the model.
        images: ``pixel_values`` [U, tiles, 3, H, W], ``image_sizes`` [U, 2] and
            ``batch_num_images`` [U], how many images are in the sample of each.

    Raises:
        ModelError: the vision tower takes images of another size.
    """
    alone = images["batch_num_images"] == 1
    made: dict[int, Tensor] = {}
    for which in (alone, ~alone):
        rows = which.nonzero().flatten().tolist()
        if not rows:
            continue
        # One sample of several images, or samples of one: as the model tells tiles from none.
        together = not bool(alone[rows[0]])
        asked = rows * 2 if together and len(rows) == 1 else rows
        counts = [len(asked)] if together else [1] * len(asked)
        some = {n: images[n][asked] for n in ("pixel_values", "image_sizes")}
        some["batch_num_images"] = torch.tensor(counts)
        made |= dict(zip(rows, plain_features(model, some), strict=False))
    return [made[i] for i in range(len(alone))]


LLAVA_ONEVISION = replace(
    LLAVA, family="llava_onevision", decoders=("qwen2",), image_features=image_features
)
MODELS.register("llava_onevision")(LLAVA_ONEVISION)
