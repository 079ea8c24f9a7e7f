"""What a CM-IBQ training does; the fields of ``cmibq train cm-ibq``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from cmibq.recipe.base import at_least, choice, opt, parse_scope
from cmibq.recipe.cm_ibq import CMIBQConfig
from cmibq.recipe.training import TRACKERS, Training, rates

__all__ = ["TRACKERS", "TrainRecipe"]

_RATES = ("stage1_lr", "stage2_lr", "scale_lr", "host_lr")


@dataclass(frozen=True)
class TrainRecipe(CMIBQConfig, Training):
    """A training of a CM-IBQ layer behind the projector of a model: the layer's fields, and these.

    Raises:
        ConfigError: a field is out of range or conflicts with another.

    Example:
        >>> recipe = TrainRecipe(model_args="pretrained=models/llava", stage2_bits=2)
        >>> recipe.layer(4096).feature_dim
        4096
    """

    task: str = opt("text", "task embedding (mode task): text (the prompt's embeddings) or learned")
    prompt_tokens: int = opt(0, "prompt tokens that count for the task embedding; 0 = all")
    train: str = opt("projector", "trained beside the layer in stage two: lm, projector, vision")
    stage1_steps: int = opt(500, "optimiser steps of stage one: the layer alone; 0 leaves it out")
    stage2_steps: int = opt(2000, "optimiser steps of stage two: with the task")
    stage1_lr: float = opt(1e-3, "learning rate of stage one")
    stage2_lr: float = opt(2e-4, "learning rate of the layer in stage two")
    scale_lr: float = opt(1e-2, "learning rate of ranges and of the prior, in both stages")
    host_lr: float = opt(2e-5, "learning rate of what is trained beside the layer")
    n_diagnose: int = opt(256, "conversations measured for diagnostics at the end; 0 = none")

    def __post_init__(self) -> None:
        self._check_types()
        self.layer(self.feature_dim or len(self.costs) or 8)
        self.check_training()
        choice("task", self.task, ("text", "learned"))
        for name in ("prompt_tokens", "stage1_steps", "n_diagnose"):
            at_least(name, getattr(self, name), 0)
        at_least("stage2_steps", self.stage2_steps, 1)
        rates(self, *_RATES)
        _ = self.parts

    @property
    def no_matter(self) -> tuple[str, ...]:
        """Fields that do not decide the result."""
        return (*super().no_matter, "n_diagnose")

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the host that stage two trains."""
        return parse_scope(self.train) if self.train.strip() else ()

    def layer(self, width: int) -> CMIBQConfig:
        """Return the configuration of the layer, given the width of the projector's output.

        Raises:
            ConfigError: a field of it is out of range.
        """
        told: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(CMIBQConfig)}
        told["feature_dim"] = self.feature_dim or width
        told["task_dim"] = self.task_dim or (width if self.mode == "task" else 0)
        return CMIBQConfig(**told)
