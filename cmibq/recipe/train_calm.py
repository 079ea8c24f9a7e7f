"""What a CALM training does; the fields of ``cmibq train calm``."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from cmibq.recipe.base import at_least, choice, opt, parse_scope, require
from cmibq.recipe.calm import CALMConfig
from cmibq.recipe.training import Training, rates

__all__ = ["CALMRecipe"]


@dataclass(frozen=True)
class CALMRecipe(CALMConfig, Training):
    """A training of the fusions between two frozen towers: fields of the tower, and these.

    The defaults are those of the published recipe: AdamW at 1e-4 with weight decay 0.01, a cosine,
    batches of 32, 3 epochs, gradient checkpointing.

    Raises:
        ConfigError: a field is out of range or conflicts with another.

    Example:
        >>> recipe = CALMRecipe(augmenting_model="models/dinov2", composition_layers=6)
        >>> recipe.learning_rate, recipe.epochs, recipe.tower.composition_layers
        (0.0001, 3, 6)
    """

    stage: int = opt(0, "stage to run: 1 (the fusions), 2 (the model around them), 0 = both")
    epochs: int = opt(3, "passes over the data of stage one")
    stage2_epochs: int = opt(1, "passes over the data of stage two")
    max_steps: int = opt(0, "most optimiser steps of a stage, for a try; 0 = no limit")
    learning_rate: float = opt(1e-4, "learning rate of the fusions, in both stages")
    host_lr: float = opt(2e-5, "learning rate of what is trained beside the fusions")
    weight_decay: float = opt(0.01, "of AdamW")
    optimizer: str = opt("AdamW", "AdamW, the only one")
    scheduler: str = opt("CosineAnnealing", "of learning rates: CosineAnnealing or constant")
    gradient_checkpointing: bool = opt(True, "compute activations twice, to save memory")
    stage1_train: str = opt("", "trained beside the fusions in stage one: projector, lm")
    train: str = opt("projector", "trained in stage two: lm, projector")
    tune_type_vision_tower: str = opt(
        "frozen", "fusions in stage two: frozen as stage one left them, or calm (trained on)"
    )
    stage1_path: str = opt(
        "", "output_path of a run whose stage one stage two starts from; default: this run's own"
    )
    feature_cache: str = opt(
        "", "folder for the augmenting tower's features, for later epochs and runs; default: none"
    )
    n_measure: int = opt(64, "conversations whose loss is told before training; 0 = none")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_training()
        for name in ("epochs", "stage2_epochs"):
            at_least(name, getattr(self, name), 1)
        for name in ("max_steps", "n_measure"):
            at_least(name, getattr(self, name), 0)
        rates(self, "learning_rate", "host_lr")
        choice("optimizer", self.optimizer, ("AdamW",))
        choice("scheduler", self.scheduler, ("CosineAnnealing", "constant"))
        choice("tune_type_vision_tower", self.tune_type_vision_tower, ("frozen", "calm"))
        at_least("stage", self.stage, 0, 2)
        for stage in (1, 2):
            require(
                "vision" not in self.parts(stage),
                "the towers of a composed tower stay frozen; take vision out of"
                f" {'train' if stage == 2 else 'stage1_train'}",
            )
        idle = self.tune_type_vision_tower == "frozen" and not self.parts(2)
        require(
            2 not in self.wanted or not idle,
            "stage two has nothing to train: tune_type_vision_tower is frozen and train is empty;"
            " set train to projector or lm, or stage to 1",
        )
        require(
            not self.stage1_path or self.stage == 2,
            f"stage1_path is {self.stage1_path!r} but stage is {self.stage}; set stage to 2",
        )

    @property
    def wanted(self) -> tuple[int, ...]:
        """The stages to run."""
        return (self.stage,) if self.stage else (1, 2)

    @property
    def no_matter(self) -> tuple[str, ...]:
        """Fields that do not decide the result."""
        return (*super().no_matter, "stage", "n_measure")

    @property
    def tower(self) -> CALMConfig:
        """The configuration of the composed tower."""
        told: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(CALMConfig)}
        return CALMConfig(**told)

    def parts(self, stage: int) -> tuple[str, ...]:
        """Return the parts of the host that a stage trains."""
        text = self.stage1_train if stage == 1 else self.train
        return parse_scope(text) if text.strip() else ()

    def steps(self, stage: int, conversations: int, processes: int = 1) -> int:
        """Return the optimiser steps of a stage.

        Example:
            >>> CALMRecipe(batch_size=4, accumulate=2).steps(1, 30)  # 90 in eights
            12
        """
        epochs = self.epochs if stage == 1 else self.stage2_epochs
        each = self.batch_size * self.accumulate * processes
        found = math.ceil(epochs * conversations / each)
        return min(found, self.max_steps) if self.max_steps else found
