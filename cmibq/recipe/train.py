"""What a CM-IBQ training does; the fields of ``cmibq train cm-ibq``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any

from cmibq.fileio import sha256_bytes
from cmibq.recipe.base import MOST_THREADS, at_least, choice, opt, parse_scope, require
from cmibq.recipe.cm_ibq import CMIBQConfig

__all__ = ["TRACKERS", "TrainRecipe"]

TRACKERS = ("tensorboard", "wandb")
_RATES = ("stage1_lr", "stage2_lr", "scale_lr", "host_lr")
_NO_MATTER = (
    "name",
    "output_path",
    "checkpoint_every",
    "threads",
    "track",
    "overwrite",
    "n_diagnose",
)


@dataclass(frozen=True)
class TrainRecipe(CMIBQConfig):
    """A training of a CM-IBQ layer behind the projector of a model: the layer's fields, and these.

    Raises:
        ConfigError: a field is out of range or conflicts with another.

    Example:
        >>> recipe = TrainRecipe(model_args="pretrained=models/llava", stage2_bits=2)
        >>> recipe.layer(4096).feature_dim
        4096
    """

    name: str = opt("", "name of the run, for tables and messages")
    model: str = opt("auto", "model family, or auto to read it from the model's config.json")
    model_args: str = opt("", "pretrained=DIR, a local Hugging Face model folder")
    data_path: str = opt("", "conversations with images, LLaVA format: .json, .jsonl or .parquet")
    image_folder: str = opt("", "folder that image paths start from; default: that of data_path")
    output_path: str = opt("", "folder for the trained model, log, checkpoint and report")
    task: str = opt("text", "task embedding (mode task): text (the prompt's embeddings) or learned")
    prompt_tokens: int = opt(0, "prompt tokens that count for the task embedding; 0 = all")
    train: str = opt("projector", "trained beside the layer in stage two: lm, projector, vision")
    stage1_steps: int = opt(500, "optimiser steps of stage one: the layer alone; 0 leaves it out")
    stage2_steps: int = opt(2000, "optimiser steps of stage two: with the task")
    stage1_lr: float = opt(1e-3, "learning rate of stage one")
    stage2_lr: float = opt(2e-4, "learning rate of the layer in stage two")
    scale_lr: float = opt(1e-2, "learning rate of ranges and of the prior, in both stages")
    host_lr: float = opt(2e-5, "learning rate of what is trained beside the layer")
    warmup: float = opt(0.03, "share of a stage's steps over which learning rates rise from 0")
    weight_decay: float = opt(0.0, "of AdamW")
    clip_norm: float = opt(1.0, "largest norm of all gradients; 0 = as they are")
    batch_size: int = opt(32, "conversations per batch and process")
    accumulate: int = opt(1, "batches per optimiser step")
    dtype: str = opt("float32", "of matrix products: float32, or bfloat16 (autocast)")
    gradient_checkpointing: bool = opt(
        False, "compute activations of the host twice, to save memory"
    )
    checkpoint_every: int = opt(100, "optimiser steps between checkpoints; 0 = none")
    n_diagnose: int = opt(256, "conversations measured for diagnostics at the end; 0 = none")
    track: str = opt("", "also log to tensorboard, wandb (offline), by commas")
    threads: int | None = opt(None, "threads; null takes those of the process")
    overwrite: bool = opt(False, "replace what another recipe left at output_path")

    def __post_init__(self) -> None:
        self.layer(self.feature_dim or len(self.costs) or 8)
        choice("task", self.task, ("text", "learned"))
        choice("dtype", self.dtype, ("float32", "bfloat16"))
        for name in ("prompt_tokens", "stage1_steps", "checkpoint_every", "n_diagnose"):
            at_least(name, getattr(self, name), 0)
        for name in ("stage2_steps", "batch_size", "accumulate"):
            at_least(name, getattr(self, name), 1)
        at_least("threads", self.threads, 1, MOST_THREADS)
        for name in (*_RATES, "weight_decay", "clip_norm"):
            value = getattr(self, name)
            require(
                math.isfinite(value) and value >= 0,
                f"{name} is {value}; allowed are numbers from 0",
            )
        require(0 <= self.warmup < 1, f"warmup is {self.warmup}; allowed are shares below 1")
        for word in self.tracks:
            choice("track", word, TRACKERS)
        _ = self.parts

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the host that stage two trains."""
        return parse_scope(self.train) if self.train.strip() else ()

    @property
    def tracks(self) -> tuple[str, ...]:
        """Where else to log."""
        return tuple(word.strip() for word in self.track.split(",") if word.strip())

    def layer(self, width: int) -> CMIBQConfig:
        """Return the configuration of the layer, given the width of the projector's output.

        Raises:
            ConfigError: a field of it is out of range.
        """
        told: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(CMIBQConfig)}
        told["feature_dim"] = self.feature_dim or width
        told["task_dim"] = self.task_dim or (width if self.mode == "task" else 0)
        return CMIBQConfig(**told)

    @property
    def identity(self) -> str:
        """A hash of all that decides the result."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NO_MATTER}
        return sha256_bytes(json.dumps(told, sort_keys=True).encode())[:16]
