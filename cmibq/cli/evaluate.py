"""``cmibq eval``: measure one model or package, or all runs of a YAML file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cmibq.cli.options import read_options
from cmibq.cli.quantize import CONFIGS
from cmibq.cli.runs import perform, title
from cmibq.errors import CmibqError
from cmibq.recipe import EvalConfig, parse_model_args

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
    """Check all measurements, then do them one after the other."""
    for number, config in enumerate(runs, 1):
        try:
            _check(config, {_place(one.output_path) for one in runs[: number - 1]})
        except CmibqError as error:
            if len(runs) > 1:
                error.add_note(f"run {number} of {len(runs)} ({title(config)})")
            raise
    perform(runs, _evaluate)


def _place(folder: str) -> Path:
    return Path(folder).expanduser().resolve()


def _check(config: EvalConfig, made: Collection[Path]) -> None:
    """Refuse what is not there: model, questions, baseline; `made` are results of runs before."""
    from cmibq.data.records import find_file
    from cmibq.eval.measure import check_baseline
    from cmibq.models import read_family

    read_family(parse_model_args(config.model_args), model=config.model)
    if not config.tasks:
        find_file(config.data_path)
    if config.baseline and _place(config.baseline) not in made:
        check_baseline(config)


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
