"""What trainings of a host model share: folders, conversations, batches, how a stage runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmibq import models
from cmibq.data import CalibSample, Encoded, check_images, read_items
from cmibq.errors import ConfigError, DataError
from cmibq.fileio import read_json
from cmibq.integrations.batches import Batches, warm_cosine
from cmibq.recipe import parse_model_args
from cmibq.recipe.training import Training
from cmibq.train import Checkpoints, Journal, Loop

__all__ = ["Job", "OnStep", "check_places", "finished", "read_shown"]

_logger = logging.getLogger(__name__)

OnStep = Callable[[int, int, dict[str, float]], None]
"""Told the stage, the step and the terms."""

_WRITTEN = (
    *("model", "stage1", "checkpoint", "log.jsonl", "bits.jsonl", "monitor.jsonl"),
    *("diagnostics.json", "report.html"),
)


def check_places(recipe: Training, **inputs: str) -> None:
    """Refuse folders that are not named, and an output folder that is not ours to replace.

    Args:
        recipe: what to do.
        **inputs: field -> folder that is read beside those that every training reads.

    Raises:
        ConfigError: a folder is not named, or holds something else than a run of this recipe.
    """
    for name in ("data_path", "output_path"):
        if not getattr(recipe, name):
            raise ConfigError(f"{name} is empty; give --{name}")
    out = Path(recipe.output_path)
    model, told = out / "model", out / "run.json"
    inputs |= {"model_args": str(parse_model_args(recipe.model_args))}
    inputs |= {"data_path": recipe.data_path, "image_folder": recipe.image_folder}
    for name, path in inputs.items():
        if path and Path(path).expanduser().resolve().is_relative_to(model.resolve()):
            raise ConfigError(
                f"{name} is {path!r}, in the folder {str(model)!r} that the result replaces; choose"
                " another output_path"
            )
    known = read_json(told).get("identity") if told.exists() else None
    foreign = [name for name in _WRITTEN if known is None and (out / name).exists()]
    if foreign:
        raise ConfigError(
            f"output_path {str(out)!r} holds {', '.join(foreign)} that no training of cmibq wrote;"
            " choose another output_path"
        )
    if known not in (None, recipe.identity) and not recipe.overwrite:
        raise ConfigError(
            f"{recipe.output_path} holds a run of another recipe; choose another output_path or set"
            " overwrite"
        )


def finished(recipe: Training) -> Any:
    """Return what ``done`` says in the output folder of this very recipe; None without one."""
    told = Path(recipe.output_path) / "run.json"
    facts = read_json(told) if told.exists() else {}
    return facts.get("done") if facts.get("identity") == recipe.identity else None


def read_shown(recipe: Training, why: str) -> list[CalibSample]:
    """Return the conversations with images, all of them opened once.

    Args:
        recipe: what to do.
        why: what the images are needed for.

    Raises:
        DataError: an item or an image cannot be used, or there is none with an image.
    """
    samples = read_items(recipe.data_path, recipe.image_folder)
    shown = [s for s in samples if s.images]
    if len(shown) < len(samples):
        _logger.warning("left out: %d items without an image", len(samples) - len(shown))
    if not shown:
        raise DataError(f"{recipe.data_path} has no item with an image; {why}")
    check_images(shown)
    return shown


@dataclass(frozen=True)
class Job:
    """A training that runs.

    Args:
        recipe: what to do.
        loaded: the model.
        samples: its data.
        on_step: told of every step.
    """

    recipe: Training
    loaded: models.LoadedModel
    samples: Sequence[Encoded]
    on_step: OnStep | None

    @property
    def out(self) -> Path:
        """The output folder."""
        return Path(self.recipe.output_path)

    def checkpoints(self) -> Checkpoints:
        """Return where the training is saved."""
        r = self.recipe
        facts = {"recipe": r.identity}
        return Checkpoints(self.out / "checkpoint", every=r.checkpoint_every, facts=facts)

    def batches(self, steps: int, stage: int) -> Batches:
        """Return the batches of a stage."""
        r = self.recipe
        return Batches(
            self.samples,
            self.loaded.processor,
            size=r.batch_size,
            count=steps * r.accumulate,
            seed=2 * r.seed + stage,
            side=self.loaded.adapter.padding,
        )

    def loop(
        self,
        stage: int,
        optimiser: torch.optim.Optimizer,
        steps: int,
        *,
        factor: Callable[[int], float] | None = None,
        **more: Any,
    ) -> Loop:
        """Return how a stage runs.

        Args:
            stage: 1 or 2.
            optimiser: of what it trains.
            steps: its optimiser steps.
            factor: of learning rates, by step; None = warmup, then a cosine.
            **more: fields of `Loop`.
        """
        r, told = self.recipe, self.on_step
        factor = factor or warm_cosine(steps, r.warmup)
        return Loop(
            accumulate=r.accumulate,
            clip_norm=r.clip_norm,
            autocast=torch.bfloat16 if r.dtype == "bfloat16" else None,
            scheduler=torch.optim.lr_scheduler.LambdaLR(optimiser, factor),
            steps=steps,
            checkpoints=self.checkpoints(),
            journal=Journal(self.out / "log.jsonl"),
            on_step=None if told is None else lambda step, log: told(stage, step, log),
            **more,
        )
