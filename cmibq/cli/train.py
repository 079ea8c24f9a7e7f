"""``cmibq train cm-ibq``: both stages on a model and conversations of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cmibq.cli.options import read_options
from cmibq.cli.output import say
from cmibq.cli.runs import perform
from cmibq.errors import ConfigError, nearest
from cmibq.recipe.train import TrainRecipe

__all__ = ["SYSTEMS", "run"]

SYSTEMS: Final = ("cm-ibq",)
"""What can be trained; the first word behind ``train``."""


def run(words: Sequence[str]) -> int:
    """Run the command."""
    rest = list(words)
    if rest and not rest[0].startswith("-"):
        system = rest.pop(0)
        if system not in SYSTEMS:
            raise ConfigError(f"unknown system {system!r}; {nearest(system, SYSTEMS)}")
    elif not {"-h", "--help"} & {*rest}:
        raise ConfigError(f"name what to train: cmibq train {SYSTEMS[0]} --config FILE.yaml")
    options = read_options(
        "train",
        TrainRecipe,
        rest,
        about="Train a CM-IBQ layer behind the projector of a VLM, in two stages.",
        prog=f"cmibq train {SYSTEMS[0]}",
    )
    if not options.done:
        from cmibq.integrations import training

        for recipe in options.runs:
            training.check(recipe)
        perform(options.runs, _train)
    return 0


class _Bar:
    """A progress bar for each stage, with what is left of it."""

    def __init__(self, recipe: TrainRecipe) -> None:
        self.steps = {1: recipe.stage1_steps, 2: recipe.stage2_steps}
        self.stage = 0
        self.bar: Any = None

    def __call__(self, stage: int, step: int, log: dict[str, float]) -> None:
        from tqdm import tqdm

        if stage != self.stage:
            self.close()
            self.stage = stage
            self.bar = tqdm(
                total=self.steps[stage], initial=step, desc=f"stage {stage}", unit="step"
            )
        shown = {k: log[k] for k in ("task", "reconstruction", "rate", "target_bits") if k in log}
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()}, refresh=False)
        self.bar.update(step + 1 - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _train(recipe: TrainRecipe, bar: bool) -> tuple[str, bool]:
    from cmibq.integrations.training import train_cm_ibq
    from cmibq.report.bottleneck import write_training_report
    from cmibq.train.peers import rank
    from cmibq.train.trackers import open_trackers

    told = _Bar(recipe)
    out = Path(recipe.output_path)
    watchers = open_trackers(recipe.tracks, out, recipe.to_dict())
    shows = bar and rank() == 0

    def on_step(stage: int, step: int, log: dict[str, float]) -> None:
        if shows:
            told(stage, step, log)
        for watcher in watchers:
            watcher(stage, step, log)

    try:
        worked = train_cm_ibq(recipe, on_step=on_step)
    finally:
        told.close()
        for watcher in watchers:
            watcher.close()
    if not worked:
        return "already done", False
    if rank() == 0:
        write_training_report(out)
    if bar:
        say(f"open {out / 'report.html'} for figures")
    return f"saved to {out / 'model'}", True
