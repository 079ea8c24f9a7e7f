"""Other places to log to: TensorBoard and Weights & Biases, both optional."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cmibq.registry import Registry
from cmibq.train.journal import read_journal
from cmibq.train.peers import rank

__all__ = ["TRACKERS", "Tracker", "open_trackers"]


class Tracker(Protocol):
    """Gets the terms of every step."""

    def __call__(self, stage: int, step: int, log: Mapping[str, float]) -> None:
        """Note the terms of a step."""

    def close(self) -> None:
        """Write what is left."""


TRACKERS: Registry[Any] = Registry("tracker")
"""Name -> (folder, settings, system) -> `Tracker`."""


class _Names:
    """Names of terms elsewhere, and the steps they stand at.

    Args:
        system: what is trained; steps of calm are counted on through its stages.
        folder: of the training, whose journal knows the steps of stage one.

    Example:
        >>> _Names("cm-ibq", Path())(2, 5, {"task": 0.5})
        ({'stage 2/task': 0.5}, 5)
        >>> _Names("calm", Path())(1, 5, {"train_loss": 0.5, "total": 0.5})
        ({'train_loss': 0.5}, 5)
    """

    def __init__(self, system: str, folder: Path) -> None:
        self.plain, self.log = system == "calm", folder / "log.jsonl"
        self.first: int | None = None

    def step(self, stage: int) -> str:
        """Return the name of the step of a stage."""
        return "step" if self.plain else f"stage {stage}/step"

    def __call__(
        self, stage: int, step: int, log: Mapping[str, float]
    ) -> tuple[dict[str, float], int]:
        """Return the terms of a step and where they stand."""
        if not self.plain:
            return {f"stage {stage}/{name}": value for name, value in log.items()}, step
        if stage == 2 and self.first is None:
            self.first = sum(r["stage"] == 1 for r in read_journal(self.log))
        at = step + (self.first or 0 if stage == 2 else 0)
        return {name: value for name, value in log.items() if name != "total"}, at


@TRACKERS.register("tensorboard")
class TensorBoard:
    """Event files in ``FOLDER/tensorboard``, one run per stage.

    Args:
        folder: of the training.
        settings: written as a text.
        system: what is trained; terms of calm have the names that are published for it.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], system: str = "cm-ibq") -> None:
        from torch.utils.tensorboard import SummaryWriter

        make: Any = SummaryWriter
        self.names = _Names(system, folder)
        self.writer = make(str(folder / "tensorboard"))
        self.writer.add_text("settings", "\n".join(f"{k}: {v}" for k, v in settings.items()))

    def __call__(self, stage: int, step: int, log: Mapping[str, float]) -> None:
        """Note the terms of a step."""
        told, at = self.names(stage, step, log)
        for name, value in told.items():
            self.writer.add_scalar(name, value, at)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


@TRACKERS.register("wandb")
class WandB:
    """A run of Weights & Biases in ``FOLDER/wandb``; offline unless ``WANDB_MODE`` says otherwise.

    Args:
        folder: of the training.
        settings: of the run.
        system: what is trained; terms of calm have the names that are published for it.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], system: str = "cm-ibq") -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.names = _Names(system, folder)
        self.run: Any = wandb.init(
            project=system,
            dir=str(folder),
            config=dict(settings),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )

    def __call__(self, stage: int, step: int, log: Mapping[str, float]) -> None:
        """Note the terms of a step."""
        told, at = self.names(stage, step, log)
        self.run.log({**told, self.names.step(stage): at})

    def close(self) -> None:
        """Write what is left."""
        self.run.finish()


def open_trackers(
    names: Sequence[str],
    folder: str | Path,
    settings: Mapping[str, Any],
    system: str = "cm-ibq",
) -> list[Tracker]:
    """Return trackers by name; of several processes the first one has them.

    Args:
        names: which ones.
        folder: of the training.
        settings: its fields.
        system: cm-ibq or calm.

    Raises:
        ConfigError: a name is unknown.
        ImportError: what a tracker needs is not installed.
    """
    makers = [TRACKERS[name] for name in names]
    return [] if rank() else [make(Path(folder), settings, system) for make in makers]
