"""Several runs one after the other in one process, with a line and an ETA for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cmibq.cli.output import close_line, duration, open_line
from cmibq.recipe import parse_model_args

__all__ = ["perform", "title"]

T = TypeVar("T")


def title(run: Any) -> str:
    """Return what a run is called: its name, or method and bits, or the folder it measures.

    Example:
        >>> from cmibq.recipe import EvalConfig, QuantRecipe
        >>> title(QuantRecipe(method="awq", w_bit=3, w_group=64, a_bit=8))
        'awq w3a8 g64'
        >>> title(EvalConfig(model_args="pretrained=out/mbq"))
        'mbq'
    """
    if run.name:
        return str(run.name)
    if getattr(run, "w_bit", 16) == 16 and run.model_args:
        return parse_model_args(run.model_args).name
    acts = f"a{run.a_bit}" if run.a_bit < 16 else ""
    return f"{run.method} w{run.w_bit}{acts} g{run.w_group}"


def perform(runs: Sequence[T], one: Callable[[T, bool], tuple[str, bool]]) -> None:
    """Do all runs; the first failure ends them.

    Args:
        runs: the runs.
        one: does one run; told whether to show a progress bar of its own, returns what to say
            about the outcome and whether there was work to do (a finished run has none).

    Raises:
        Exception: as the run raised it, with a note of the run's number and name.
    """
    total, spent, worked = len(runs), 0.0, 0
    width = len(str(total))
    for number, run in enumerate(runs, 1):
        counter = f"[{number:{width}d}/{total}] {title(run)}"
        if total > 1:
            open_line(f"{counter} ... ")
        start = time.monotonic()
        try:
            text, busy = one(run, total == 1)
        except Exception as error:
            if total > 1:
                error.add_note(f"run {number} of {total} ({title(run)})")
            raise
        seconds = time.monotonic() - start
        if busy:
            spent, worked = spent + seconds, worked + 1
        parts = [text, duration(seconds)] if busy else [text]
        left = total - number
        if left and worked:
            parts.append(f"about {duration(spent / worked * left)} left")
        close_line(", ".join(parts) if total > 1 else f"{title(run)}: {', '.join(parts)}")
