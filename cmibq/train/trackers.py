"""Other places to log to: TensorBoard and Weights & Biases, both optional."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cmibq.registry import Registry
from cmibq.train.peers import rank

__all__ = ["TRACKERS", "Tracker", "open_trackers"]


class Tracker(Protocol):
    """Gets the terms of every step."""

    def __call__(self, stage: int, step: int, log: Mapping[str, float]) -> None:
        """Note the terms of a step."""

    def close(self) -> None:
        """Write what is left."""


TRACKERS: Registry[Any] = Registry("tracker")
"""Name -> (folder, settings) -> `Tracker`."""


@TRACKERS.register("tensorboard")
class TensorBoard:
    """Event files in ``FOLDER/tensorboard``, one run per stage.

    Args:
        folder: of the training.
        settings: written as a text.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        make: Any = SummaryWriter
        self.writer = make(str(folder / "tensorboard"))
        self.writer.add_text("settings", "\n".join(f"{k}: {v}" for k, v in settings.items()))

    def __call__(self, stage: int, step: int, log: Mapping[str, float]) -> None:
        """Note the terms of a step."""
        for name, value in log.items():
            self.writer.add_scalar(f"stage {stage}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


@TRACKERS.register("wandb")
class WandB:
    """A run of Weights & Biases in ``FOLDER/wandb``; offline unless ``WANDB_MODE`` says otherwise.

    Args:
        folder: of the training.
        settings: of the run.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.run: Any = wandb.init(
            project="cm-ibq",
            dir=str(folder),
            config=dict(settings),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )

    def __call__(self, stage: int, step: int, log: Mapping[str, float]) -> None:
        """Note the terms of a step."""
        told = {f"stage {stage}/{name}": value for name, value in log.items()}
        self.run.log({**told, f"stage {stage}/step": step})

    def close(self) -> None:
        """Write what is left."""
        self.run.finish()


def open_trackers(
    names: Sequence[str], folder: str | Path, settings: Mapping[str, Any]
) -> list[Tracker]:
    """Return trackers by name; of several processes the first one has them.

    Raises:
        ConfigError: a name is unknown.
        ImportError: what a tracker needs is not installed.
    """
    makers = [TRACKERS[name] for name in names]
    return [] if rank() else [make(Path(folder), settings) for make in makers]
