"""Measuring through lmms-eval as its authors publish it; imported when tasks are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cmibq.errors import ConfigError, StorageError, nearest
from cmibq.eval.footprint import disk_bytes, peak_memory
from cmibq.eval.loading import open_model
from cmibq.eval.pseudo import check_scales, pseudo_quantize_
from cmibq.eval.requests import answer_requests, likelihood_requests
from cmibq.fileio import check_writable, write_json
from cmibq.io.environment import environment
from cmibq.models import LoadedModel
from cmibq.recipe import EvalConfig, parse_model_args

__all__ = ["TASKS", "evaluate_tasks"]

TASKS = "tasks.json"
"""File with the results of all tasks, in the output folder."""
Json = dict[str, Any]


def _host() -> Any:
    """Import lmms-eval.

    Raises:
        ConfigError: it is not installed, or cannot be imported.
    """
    try:
        import lmms_eval.evaluator as evaluator
        from loguru import logger
    except (ImportError, RuntimeError) as error:
        missing = getattr(error, "name", None) == "lmms_eval"
        reason = "it is not installed" if missing else f"its import failed: {error}"
        raise ConfigError(
            f"tasks needs lmms-eval, and {reason}; pip install 'cmibq[eval]' in an environment"
            " of its own, or measure with data_path"
        ) from error
    logger.disable("lmms_eval")
    return evaluator


def _adaptor(loaded: LoadedModel, batch_size: int, progress: bool) -> Any:
    """Return the model as lmms-eval knows models."""
    from lmms_eval.api.model import lmms

    class Measured(lmms):  # type: ignore[misc]  # its type is not known here
        def generate_until(self, requests: list[Any]) -> list[str]:
            return answer_requests(
                loaded, requests, self.task_dict, batch_size=batch_size, progress=progress
            )

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return likelihood_requests(
                loaded, requests, self.task_dict, batch_size=batch_size, progress=progress
            )

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise ConfigError("a task asks in several rounds; cmibq measures one round only")

    return Measured()


def _task_names(manager: Any, tasks: str) -> list[str]:
    """Return the tasks that names and patterns stand for.

    Raises:
        ConfigError: a name is unknown; offers the nearest.
    """
    wanted = [name.strip() for name in tasks.split(",") if name.strip()]
    found: list[str] = manager.match_tasks(wanted)
    for name in wanted:
        if name not in found and "*" not in name:
            hint = nearest(name, manager.all_tasks) if name else ""
            raise ConfigError(
                f"tasks has unknown task {name!r}; {hint[:300]} (include_path names a folder with"
                " tasks of your own)"
            )
    if not found:
        raise ConfigError(f"tasks is {tasks!r}, which matches no task of lmms-eval")
    return found


def _write(cfg: EvalConfig, results: Json, samples: Json | None, stamp: str) -> None:
    """Write the files that lmms-eval writes, with its own tracker.

    Raises:
        StorageError: the tracker could not write them.
    """
    from lmms_eval.loggers.evaluation_tracker import EvaluationTracker

    tracker = EvaluationTracker(output_path=cfg.output_path)
    general = tracker.general_config_tracker
    folder = parse_model_args(cfg.model_args)
    general.log_experiment_args("cmibq", f"pretrained={folder}", "", "", False)
    tracker.save_results_aggregated(results=results, samples=samples, datetime_str=stamp)
    place = Path(cfg.output_path) / general.model_name_sanitized
    made = [place / f"{tracker.date_id}_results.json"]
    for task, some in (samples or {}).items():
        tracker.save_results_samples(task_name=task, samples=some)
        file = place / f"{tracker.date_id}_samples_{task}.jsonl"
        made.append(file)
        if cfg.log_samples_suffix and file.is_file():
            made[-1] = file.rename(file.with_stem(f"{file.stem}_{cfg.log_samples_suffix}"))
    for file in made:
        if not file.is_file():
            raise StorageError(5, "lmms-eval could not write it", str(file))


class _Arguments(SimpleNamespace):
    """What lmms-eval's command line would have; None for flags that were not given."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def _simple_evaluate(loaded: LoadedModel, cfg: EvalConfig, progress: bool) -> Json:
    evaluator = _host()
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=cfg.include_path or None, model_name="cmibq")
    simple: Callable[..., Any] = evaluator.simple_evaluate
    found: Json = simple(
        model=_adaptor(loaded, cfg.batch_size, progress),
        model_args=cfg.model_args,
        tasks=_task_names(manager, cfg.tasks),
        num_fewshot=cfg.num_fewshot,
        batch_size=cfg.batch_size,
        limit=cfg.limit,
        gen_kwargs=cfg.gen_kwargs or None,
        log_samples=True,
        task_manager=manager,
        verbosity="ERROR",
        cli_args=_Arguments(**dataclasses.asdict(cfg)),
    )
    return found


def evaluate_tasks(cfg: EvalConfig, *, progress: bool = True) -> Json:
    """Measure a model folder or a package on tasks of lmms-eval.

    Writes lmms-eval's own files and ``tasks.json`` to ``cfg.output_path``.

    Args:
        cfg: what to measure; ``tasks`` names tasks of lmms-eval or of ``include_path``.
        progress: whether to show progress bars.

    Returns:
        The content of ``tasks.json``: ``tasks`` has the metrics of each.

    Raises:
        ConfigError: lmms-eval is not installed, a task is unknown, options conflict.
        ModelError: the model cannot be loaded.
        StorageError: disk full or not permitted.
    """
    _host()
    folder = parse_model_args(cfg.model_args)
    if cfg.scale_path and folder.is_dir():
        check_scales(cfg, folder)
    if cfg.output_path:
        check_writable(Path(cfg.output_path).expanduser() / TASKS)
    with peak_memory() as peak:
        loaded, package = open_model(folder, model=cfg.model)
        if cfg.pseudo_quant and package is not None:
            raise ConfigError(f"pseudo_quant is set, but {folder} is a package; leave it out")
        if cfg.pseudo_quant:
            pseudo_quantize_(loaded, cfg)
        results = _simple_evaluate(loaded, cfg, progress)
    samples = results.pop("samples", None)
    result: Json = {
        "name": cfg.name,
        "tasks": results["results"],
        "n_questions": {task: len(some) for task, some in (samples or {}).items()},
        "versions": results.get("versions", {}),
        "lmms_eval": results.get("lmms_eval_version"),
        "bytes_on_disk": disk_bytes(folder),
        "peak_rss": peak.bytes,
        "config": dataclasses.asdict(cfg),
        "environment": environment(),
    }
    if cfg.output_path:
        _write(cfg, results, samples if cfg.log_samples else None, str(results["date"]))
        write_json(Path(cfg.output_path).expanduser() / TASKS, result)
    return result | {"skipped": False}
