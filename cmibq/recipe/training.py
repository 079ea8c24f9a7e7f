"""What every training command has in common: places, how steps are made, where they are logged."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from cmibq.fileio import sha256_bytes
from cmibq.recipe.base import MOST_SEED, MOST_THREADS, at_least, choice, opt, require

__all__ = ["TRACKERS", "Training", "rates"]

TRACKERS = ("tensorboard", "wandb")


def rates(recipe: Training, *names: str) -> None:
    """Refuse rates and weights that are no finite numbers from 0.

    Raises:
        ConfigError: naming the field and the value.
    """
    for name in names:
        value = getattr(recipe, name)
        require(
            math.isfinite(value) and value >= 0,
            f"{name} is {value}; allowed are numbers from 0",
        )


@dataclass(frozen=True)
class Training:
    """Fields that trainings of a Hugging Face model on conversations have in common."""

    name: str = opt("", "name of the run, for tables and messages")
    model: str = opt("auto", "model family, or auto to read it from the model's config.json")
    model_args: str = opt("", "pretrained=DIR, a local Hugging Face model folder")
    data_path: str = opt("", "conversations with images, LLaVA format: .json, .jsonl or .parquet")
    image_folder: str = opt("", "folder that image paths start from; default: that of data_path")
    output_path: str = opt("", "folder for the trained model, log, checkpoint and report")
    batch_size: int = opt(32, "conversations per batch and process")
    accumulate: int = opt(1, "batches per optimiser step")
    warmup: float = opt(0.03, "share of a stage's steps over which learning rates rise from 0")
    weight_decay: float = opt(0.0, "of AdamW")
    clip_norm: float = opt(1.0, "largest norm of all gradients; 0 = as they are")
    dtype: str = opt("float32", "of matrix products: float32, or bfloat16 (autocast)")
    gradient_checkpointing: bool = opt(
        False, "compute activations of the host twice, to save memory"
    )
    checkpoint_every: int = opt(100, "optimiser steps between checkpoints; 0 = none")
    seed: int = opt(0, "of what is drawn, and of the order of the data")
    track: str = opt("", "also log to tensorboard, wandb (offline), by commas")
    threads: int | None = opt(None, "threads; null takes those of the process")
    overwrite: bool = opt(False, "replace what another recipe left at output_path")

    def check_training(self) -> None:
        """Refuse values of these fields that are out of range.

        Raises:
            ConfigError: naming the field, the value and what is allowed.
        """
        choice("dtype", self.dtype, ("float32", "bfloat16"))
        at_least("checkpoint_every", self.checkpoint_every, 0)
        at_least("seed", self.seed, 0, MOST_SEED)
        for name in ("batch_size", "accumulate"):
            at_least(name, getattr(self, name), 1)
        at_least("threads", self.threads, 1, MOST_THREADS)
        rates(self, "weight_decay", "clip_norm")
        require(0 <= self.warmup < 1, f"warmup is {self.warmup}; allowed are shares below 1")
        for word in self.tracks:
            choice("track", word, TRACKERS)

    @property
    def tracks(self) -> tuple[str, ...]:
        """Where else to log."""
        return tuple(word.strip() for word in self.track.split(",") if word.strip())

    @property
    def no_matter(self) -> tuple[str, ...]:
        """Fields that do not decide the result."""
        return ("name", "output_path", "checkpoint_every", "threads", "track", "overwrite")

    @property
    def identity(self) -> str:
        """A hash of all that decides the result."""
        told = {n: v for n, v in asdict(self).items() if n not in self.no_matter}
        return sha256_bytes(json.dumps(told, sort_keys=True).encode())[:16]
