"""``cmibq train``: a CM-IBQ layer, or a composed vision tower, on conversations of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cmibq.cli.options import read_options
from cmibq.cli.output import say
from cmibq.cli.runs import perform
from cmibq.errors import ConfigError, nearest
from cmibq.recipe.train import TrainRecipe
from cmibq.recipe.train_calm import CALMRecipe

__all__ = ["SYSTEMS", "run"]

_PLAN = "print what would be trained, from configurations alone: nothing is loaded or written"


@dataclass(frozen=True)
class System:
    """What can be trained.

    Args:
        recipe: class of its fields.
        about: what it does, for the help.
        shown: terms beside the progress bar.
        switches: flags of the command that are no fields.
    """

    recipe: type[Any]
    about: str
    shown: tuple[str, ...]
    switches: Mapping[str, str]


SYSTEMS: Final = {
    "cm-ibq": System(
        TrainRecipe,
        "Train a CM-IBQ layer behind the projector of a VLM, in two stages.",
        ("task", "reconstruction", "rate", "target_bits"),
        {},
    ),
    "calm": System(
        CALMRecipe,
        "Compose the vision tower of a VLM with a second one and train the fusions between them.",
        ("train_loss", "attention_entropy", "learning_rate"),
        {"plan": _PLAN},
    ),
}
"""The first word behind ``train`` -> what is trained."""


def run(words: Sequence[str]) -> int:
    """Run the command."""
    rest = list(words)
    if rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in SYSTEMS:
            raise ConfigError(f"unknown system {name!r}; {nearest(name, SYSTEMS)}")
    elif {"-h", "--help"} & {*rest}:
        name = next(iter(SYSTEMS))
    else:
        told = " or ".join(f"cmibq train {known} --config FILE.yaml" for known in SYSTEMS)
        raise ConfigError(f"name what to train: {told}")
    system = SYSTEMS[name]
    options = read_options(
        "train",
        system.recipe,
        rest,
        about=system.about,
        prog=f"cmibq train {name}",
        switches=system.switches,
    )
    if not options.done:
        _check(name, options.runs, "plan" in options.switches)
        if "plan" not in options.switches:
            perform(options.runs, lambda recipe, bar: _train(name, recipe, bar))
    return 0


def _check(name: str, recipes: Sequence[Any], show: bool) -> None:
    """Refuse all runs of which one cannot run; show the tables of parameters where wanted."""
    if name == "cm-ibq":
        from cmibq.integrations import training

        for recipe in recipes:
            training.check(recipe)
        return
    from cmibq.integrations import calm_plan, calm_training

    for recipe in recipes:
        tables = calm_plan.plan(recipe) if show else calm_training.check(recipe)
        for stage, table in tables.items() if show else ():
            say(f"stage {stage}\n{table}")


class _Bar:
    """A progress bar for each stage, with what is left of it."""

    def __init__(self, shown: Sequence[str], steps: Mapping[int, int]) -> None:
        self.shown, self.steps = shown, dict(steps)
        self.stage = 0
        self.bar: Any = None

    def begin(self, stage: int, steps: int) -> None:
        """Take the steps of a stage that begins."""
        self.close()
        self.steps[stage] = steps

    def say(self, text: str) -> None:
        """Write whole lines to stdout, not into the bar."""
        from tqdm import tqdm

        with tqdm.external_write_mode():
            say(text)

    def __call__(self, stage: int, step: int, log: Mapping[str, float]) -> None:
        from tqdm import tqdm

        if self.bar is None or stage != self.stage:
            self.close()
            self.stage = stage
            self.bar = tqdm(
                total=self.steps[stage], initial=step, desc=f"stage {stage}", unit="step"
            )
        told = {k: log[k] for k in self.shown if k in log}
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in told.items()}, refresh=False)
        self.bar.update(step + 1 - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


OnStep = Callable[[int, int, dict[str, float]], None]


def _cm_ibq(recipe: TrainRecipe, on_step: OnStep, told: _Bar) -> Callable[[Path], Path] | None:
    from cmibq.integrations.training import train_cm_ibq
    from cmibq.report.bottleneck import write_training_report

    worked = train_cm_ibq(recipe, on_step=on_step)
    return write_training_report if worked else None


def _calm(recipe: CALMRecipe, on_step: OnStep, told: _Bar) -> Callable[[Path], Path] | None:
    from cmibq.integrations.calm_training import train_calm_recipe
    from cmibq.report.composition import write_calm_report

    worked = train_calm_recipe(recipe, on_step=on_step, on_begin=told.begin, say=told.say)
    return write_calm_report if worked else None


def _train(name: str, recipe: Any, bar: bool) -> tuple[str, bool]:
    from cmibq.train.peers import rank
    from cmibq.train.trackers import open_trackers

    planned = {} if name == "calm" else {1: recipe.stage1_steps, 2: recipe.stage2_steps}
    told = _Bar(SYSTEMS[name].shown, planned)
    out = Path(recipe.output_path)
    watchers = open_trackers(recipe.tracks, out, recipe.to_dict(), name)
    shows = bar and rank() == 0

    def on_step(stage: int, step: int, log: dict[str, float]) -> None:
        if shows:
            told(stage, step, log)
        for watcher in watchers:
            watcher(stage, step, log)

    try:
        report = (_calm if name == "calm" else _cm_ibq)(recipe, on_step, told)
    finally:
        told.close()
        for watcher in watchers:
            watcher.close()
    if report is None:
        return "already done", False
    if rank() == 0:
        report(out)
    if bar:
        say(f"open {out / 'report.html'} for figures")
    return f"saved to {out / 'model'}", True
