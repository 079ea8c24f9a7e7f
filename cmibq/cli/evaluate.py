"""``cmibq eval``: measure one model or package, or all runs of a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cmibq.cli.options import read_options
from cmibq.cli.quantize import CONFIGS
from cmibq.cli.runs import perform
from cmibq.recipe import EvalConfig

__all__ = ["evaluate_runs", "run"]


def run(words: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(
        "eval",
        EvalConfig,
        words,
        about="Measure answers, log-likelihood, size, speed and memory of a model or a package.",
        shipped=CONFIGS,
    )
    if not options.done:
        evaluate_runs(options.runs)
    return 0


def evaluate_runs(runs: Sequence[EvalConfig]) -> None:
    """Do all measurements, one after the other."""
    perform(runs, _evaluate)


def _evaluate(config: EvalConfig, bar: bool) -> tuple[str, bool]:
    from cmibq.eval import evaluate

    result = evaluate(config, progress=bar)
    if config.tasks:
        return _of_tasks(result["tasks"]), True
    accuracy, error = 100 * result["accuracy"], 100 * result["stderr"]
    text = f"{accuracy:.2f} % +- {error:.2f} of {result['n_questions']} questions"
    if result["skipped"]:
        return f"{text} (already done)", False
    return text, True


def _of_tasks(tasks: dict[str, dict[str, Any]]) -> str:
    """Return the metrics of tasks in one line: mmmu_val mmmu_acc 0.4211."""
    found = [
        f"{task} {name.removesuffix(',none')} {value:.4f}"
        for task, metrics in tasks.items()
        for name, value in metrics.items()
        if isinstance(value, float) and "stderr" not in name
    ]
    return ", ".join(found) or "no metric"
