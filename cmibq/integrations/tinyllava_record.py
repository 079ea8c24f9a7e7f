"""What config.json of a TinyLLaVA model holds of its composed tower: enough to build it again.

``vision_config.calm`` has the configuration of CALM, that of the augmenting tower, and both image
processors, so that a checkpoint opens where neither of the original towers can be reached.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from cmibq.errors import ConfigError, ModelError
from cmibq.models.composed import CALMVisionTower
from cmibq.models.packed import PackedProcessor
from cmibq.models.towers import vision_config
from cmibq.recipe.calm import CALMConfig

__all__ = ["KEY", "Record", "weights_"]

KEY = "calm"
"""Of the vision tower, of the tune type, and of the field in ``vision_config``."""


def _processor(fields: dict[str, Any]) -> Any:
    import transformers

    name = str(fields.get("image_processor_type"))
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ModelError(f"transformers {transformers.__version__} has no image processor {name!r}")
    return kind.from_dict(fields)


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
        augmenting = vision_config(AutoConfig.from_pretrained(names["augmenting"]))
        return cls(config, json.loads(augmenting.to_json_string(use_diff=False)), processors)

    @classmethod
    def of(cls, anchor_config: Any) -> Record:
        """Return what ``vision_config`` holds.

        Raises:
            ModelError: nothing, or something else.
        """
        fields = getattr(anchor_config, KEY, None)
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

    def images(self) -> PackedProcessor:
        """Return the image processor of both towers."""
        made = {k: _processor(v) for k, v in self.processors.items()}
        return PackedProcessor(made["anchor"], made["augmenting"])

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
