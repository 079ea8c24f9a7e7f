"""What config.json of a TinyLLaVA model holds of its composed tower: enough to build it again.

``vision_config.calm`` has the configuration of CALM, that of the augmenting tower, and both image
processors, so that a checkpoint opens where neither of the original towers can be reached.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmibq.errors import ConfigError, ModelError
from cmibq.models.composed import CALMVisionTower
from cmibq.recipe.calm import CALMConfig

__all__ = ["KEY", "PackedImages", "Record", "vision_half", "weights_"]

KEY = "calm"
"""Of the vision tower, of the tune type, and of the field in ``vision_config``."""


def vision_half(config: Any) -> Any:
    """Return the half of a configuration that is about images."""
    return getattr(config, "vision_config", config)


def _processor(fields: dict[str, Any]) -> Any:
    import transformers

    name = str(fields.get("image_processor_type"))
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ModelError(f"transformers {transformers.__version__} has no image processor {name!r}")
    return kind.from_dict(fields)


class PackedImages:
    """Two image processors as one: the anchor's pixels above the augmenting tower's.

    What is not covered is 0. A host that knows one processor and one tensor needs no change.

    Args:
        anchor: image processor of the anchor.
        augmenting: image processor of the augmenting tower.

    Attributes:
        edges: (height, width) of the pixels of both towers.
        size: height and width of the packed tensor; `crop_size` is the same.
    """

    def __init__(self, anchor: Any, augmenting: Any) -> None:
        self.processors = (anchor, augmenting)
        self.edges = (self._edge(anchor), self._edge(augmenting))
        (ha, wa), (hb, wb) = self.edges
        self.size = self.crop_size = {"height": ha + hb, "width": max(wa, wb)}
        self.image_mean, self.image_std = anchor.image_mean, anchor.image_std

    @staticmethod
    def _edge(processor: Any) -> tuple[int, int]:
        from PIL import Image

        made = processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
        return int(made.shape[-2]), int(made.shape[-1])

    def split(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the pixels of both towers of a packed tensor [..., H, W].

        Raises:
            ConfigError: it was not made by this processor.
        """
        want = (self.size["height"], self.size["width"])
        if tuple(pixels.shape[-2:]) != want:
            raise ConfigError(
                f"images have {tuple(pixels.shape[-2:])} pixels, but both towers together take"
                f" {want}; use model.vision_tower._image_processor"
            )
        (ha, wa), (_, wb) = self.edges
        return {"anchor": pixels[..., :ha, :wa], "augmenting": pixels[..., ha:, :wb]}

    def preprocess(self, images: Any, return_tensors: Any = None, **more: Any) -> Any:
        """Return ``{"pixel_values": [n, 3, H, W]}`` of an image or a list of images."""
        from transformers import BatchFeature

        parts = [p(images, return_tensors="pt", **more)["pixel_values"] for p in self.processors]
        packed = parts[0].new_zeros(*parts[0].shape[:2], *self.size.values())
        for place, part in zip(self.split(packed).values(), parts, strict=True):
            place.copy_(part)
        values = packed if return_tensors == "pt" else list(packed.numpy())
        return BatchFeature({"pixel_values": values})

    def __call__(self, images: Any, return_tensors: Any = None, **more: Any) -> Any:
        """Do what `preprocess` does."""
        return self.preprocess(images, return_tensors, **more)


@dataclass(frozen=True)
class Record:
    """A composed tower, without weights.

    Args:
        config: where and how the towers meet.
        augmenting: configuration of the augmenting tower; the anchor's is ``vision_config``.
        processors: of "anchor" and "augmenting".
    """

    config: CALMConfig
    augmenting: dict[str, Any]
    processors: dict[str, dict[str, Any]]

    @classmethod
    def made(cls, config: CALMConfig) -> Record:
        """Return the record of two towers that can be reached.

        Raises:
            ConfigError: a tower is not named.
            OSError: a tower cannot be reached.
        """
        from transformers import AutoConfig, AutoImageProcessor

        names = {"anchor": config.anchor_model, "augmenting": config.augmenting_model}
        for which, name in names.items():
            if not name:
                raise ConfigError(
                    f"the composed tower has no {which} tower; give --vision_tower calm:ANCHOR"
                    " --vision_tower2 calm:AUGMENTING"
                )
        found = {k: AutoImageProcessor.from_pretrained(v) for k, v in names.items()}
        processors = {k: json.loads(p.to_json_string()) for k, p in found.items()}
        augmenting = vision_half(AutoConfig.from_pretrained(names["augmenting"]))
        return cls(config, json.loads(augmenting.to_json_string(use_diff=False)), processors)

    @classmethod
    def of(cls, vision_config: Any) -> Record:
        """Return what ``vision_config`` holds.

        Raises:
            ModelError: nothing, or something else.
        """
        fields = getattr(vision_config, KEY, None)
        if not isinstance(fields, dict) or not {"config", "augmenting", "processors"} <= {*fields}:
            raise ModelError(
                "vision_config holds no description of a composed tower under 'calm'; name both"
                " towers (calm:ANCHOR, calm:AUGMENTING), or use a checkpoint that cmibq wrote"
            )
        config = CALMConfig.from_dict(fields["config"])
        return cls(config, fields["augmenting"], fields["processors"])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        config = self.config.to_dict()
        config["anchor_layers"] = list(config["anchor_layers"])
        return {"config": config, "augmenting": self.augmenting, "processors": self.processors}

    def images(self) -> PackedImages:
        """Return the image processor of both towers."""
        made = {k: _processor(v) for k, v in self.processors.items()}
        return PackedImages(made["anchor"], made["augmenting"])

    def tower(self, anchor_config: Any) -> CALMVisionTower:
        """Return the composed tower with random weights.

        Args:
            anchor_config: configuration of the anchor.

        Raises:
            ConfigError: see `CALMVisionTower`.
        """
        from transformers import CONFIG_MAPPING, AutoModel

        fields = dict(self.augmenting)
        other = CONFIG_MAPPING[fields.pop("model_type")].from_dict(fields)
        anchor = AutoModel.from_config(anchor_config)
        tower = CALMVisionTower(anchor, AutoModel.from_config(other), self.config)
        for module in tower.modules():
            mark: Any = module
            mark._is_hf_initialized = True  # the host's post_init would draw weights anew
        return tower


def weights_(tower: CALMVisionTower, names: tuple[str, str]) -> None:
    """Load the weights of both towers from where they were published.

    Args:
        tower: to load into.
        names: of the anchor and of the augmenting tower: folders or hub names.
    """
    with torch.no_grad():
        parts: Any = (tower.anchor_tower, tower.augmenting_tower)
        for part, name in zip(parts, names, strict=True):
            part.load_state_dict(type(part).from_pretrained(name).state_dict())
