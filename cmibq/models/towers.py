"""Vision towers of Hugging Face as data: where their layers are and how wide they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from cmibq.errors import ModelError

__all__ = ["TowerParts", "parts_of"]

_BLOCKS = (
    "vision_model.encoder.layers",
    "encoder.layers",
    "encoder.layer",
    "layers",
)
"""Where towers keep their layers: CLIP and SigLIP; the same without their wrapper; DINOv2, ViT."""


@dataclass(frozen=True)
class TowerParts:
    """What composing needs to know of a tower.

    Args:
        blocks: its layers, in order.
        widths: width of what each layer gives.
        image_size: (height, width) of the pixels that it takes.
        prefix_tokens: tokens before the patches (CLS, registers).
    """

    blocks: tuple[nn.Module, ...]
    widths: tuple[int, ...]
    image_size: tuple[int, int]
    prefix_tokens: int

    @property
    def depth(self) -> int:
        """Return the number of layers."""
        return len(self.blocks)


def _at(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def parts_of(tower: nn.Module) -> TowerParts:
    """Return the parts of a tower.

    Raises:
        ModelError: its layers are in none of the known places.
    """
    config: Any = tower.config
    config = getattr(config, "vision_config", config)
    for path in _BLOCKS:
        blocks = _at(tower, path)
        if isinstance(blocks, nn.ModuleList):
            break
    else:
        raise ModelError(
            f"{type(tower).__name__} keeps its layers in none of {', '.join(_BLOCKS)}; use a CLIP,"
            " SigLIP, DINOv2 or ViT tower"
        )
    size = config.image_size
    edge = (size, size) if isinstance(size, int) else tuple(size)
    prefix = 0 if "siglip" in config.model_type else 1
    prefix += getattr(config, "num_register_tokens", 0)
    width = config.hidden_size
    return TowerParts(tuple(blocks), (width,) * len(blocks), edge, prefix)
