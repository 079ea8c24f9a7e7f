"""What a CM-IBQ layer is and where it sits in a host."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cmibq.errors import ConfigError
from cmibq.recipe.base import at_least, choice, require
from cmibq.recipe.cm_ibq import CMIBQConfig

__all__ = ["BridgeConfig"]


@dataclass(frozen=True)
class BridgeConfig:
    """A CM-IBQ layer, and how it sits in a host; what config.json holds under ``cm_ibq``.

    Args:
        layer: the layer; `feature_dim` is the width of the projector's output.
        task: where task embeddings come from. text: mean of the prompt's token embeddings;
            learned: one vector per task id, trained; given: with the batch (``cm_ibq_task``).
        tasks: rows of the table of task vectors.
        prompt_tokens: prompt tokens that count, from the end; 0 = all.
        position: post: behind the projector; pre: before it, on features of the vision tower.
        text_dim: width of the host's text embeddings; 0 = that of the features.

    Raises:
        ConfigError: a field is out of range.
    """

    layer: CMIBQConfig
    task: str = "text"
    tasks: int = 1
    prompt_tokens: int = 0
    position: str = "post"
    text_dim: int = 0

    def __post_init__(self) -> None:
        choice("task", self.task, ("text", "learned", "given"))
        at_least("tasks", self.tasks, 1)
        at_least("prompt_tokens", self.prompt_tokens, 0)
        at_least("text_dim", self.text_dim, 0)
        choice("position", self.position, ("post", "pre"))
        require(
            self.layer.importance != "rollout",
            "importance is 'rollout', which needs the attention of the vision tower, and hosts keep"
            " none; take network, variance or fisher, or call layer.run(..., attention=weights)"
            " yourself",
        )

    @property
    def text_width(self) -> int:
        """Width of the host's text embeddings."""
        return self.text_dim or self.layer.feature_dim

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)

    @classmethod
    def of(
        cls, fields: BridgeConfig | CMIBQConfig | dict[str, Any], width: int, before: int = 0
    ) -> BridgeConfig:
        """Return the configuration of what a user gave.

        Args:
            fields: a configuration, that of a layer, or either as a dictionary, where
                ``feature_dim`` and ``task_dim`` may be missing.
            width: of the host's text embeddings, which is that of the projector's output.
            before: of the projector's input, for a layer that sits before it; 0 = not known.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        if isinstance(fields, BridgeConfig):
            return fields
        if isinstance(fields, CMIBQConfig):
            return cls(fields)
        whole = dict(fields) if "layer" in fields else {"layer": dict(fields)}
        layer = whole.pop("layer")
        if isinstance(layer, dict):
            pre = whole.get("position") == "pre"
            whole |= {"text_dim": whole.get("text_dim") or width} if pre else {}
            if pre and not before and not layer.get("feature_dim"):
                raise ConfigError(
                    "position is 'pre', and this host does not say how wide the projector's input"
                    " is; give feature_dim, or take position 'post'"
                )
            dims = {"feature_dim": before if pre and before else width}
            dims |= {"task_dim": width} if layer.get("mode") == "task" else {}
            given = {k: v for k, v in layer.items() if not (k in dims and v == 0)}
            layer = CMIBQConfig.from_dict(dims | given)
        for key in whole:
            if key not in cls.__dataclass_fields__:
                known = ", ".join(cls.__dataclass_fields__)
                raise ConfigError(f"cm_ibq has no field {key!r}; allowed are {known}")
        return cls(layer, **whole)
