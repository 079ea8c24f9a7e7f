"""What the demo runs: options, and the lists of runs that become YAML files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cmibq.errors import ConfigError

__all__ = ["DataOptions", "DemoOptions", "eval_runs", "quantize_runs", "results_folder"]

MODELS: Final = ("planted", "plain")
METHODS: Final = ("rtn", "smoothquant", "awq", "mbq")
SETTINGS: Final = ((4, 64, 16), (3, 64, 16), (2, 32, 16), (4, 64, 8))
"""(w_bit, w_group, a_bit); the same groups for every method."""

# The model is so small that a second thread costs more than it brings, above all where another
# program wants the core: AWQ at W3 took 5.6 s of processor time with one thread, 15 s with two.
_THREADS: Final = 1
_SPLITS: Final = ("test", "dev")


def _check_split(split: str) -> None:
    if split not in _SPLITS:
        raise ConfigError(f"split is {split!r}; allowed are {', '.join(_SPLITS)}")


@dataclass(frozen=True)
class DataOptions:
    """What ``cmibq demo-data`` can be asked."""

    out: str = field(default="demo-data", metadata={"help": "folder to write"})
    split: str = field(default="test", metadata={"help": "questions to measure: test or dev"})
    train: bool = field(default=False, metadata={"help": "train the model from scratch first"})
    quick: bool = field(default=False, metadata={"help": "few runs and questions, for a look"})

    def __post_init__(self) -> None:
        _check_split(self.split)


@dataclass(frozen=True)
class DemoOptions:
    """What ``cmibq demo`` can be asked."""

    out: str = field(
        default="demo-report",
        metadata={"help": "folder for the report; what can be resumed lies in .work below it"},
    )
    split: str = field(default="test", metadata={"help": "questions to measure: test or dev"})
    train: bool = field(default=False, metadata={"help": "train the model from scratch first"})
    quick: bool = field(default=False, metadata={"help": "few runs and questions, for a look"})

    def __post_init__(self) -> None:
        _check_split(self.split)


def _combinations(quick: bool) -> Iterator[tuple[str, str, tuple[int, int, int]]]:
    for model in MODELS:
        for setting in SETTINGS[2:3] if quick else SETTINGS:
            for method in ("rtn",) if quick and model == "plain" else METHODS:
                yield model, method, setting


def _name(model: str, method: str, setting: tuple[int, int, int]) -> str:
    bits, group, acts = setting
    return f"{model}-{method}-w{bits}{f'a{acts}' if acts < 16 else ''}g{group}"


def _packages_folder(work: Path, quick: bool) -> Path:
    return work / ("packages-quick" if quick else "packages")


def results_folder(work: Path, *, split: str = "test", quick: bool = False) -> Path:
    """Return where results go; those of other questions lie elsewhere and are never mixed."""
    return work / f"eval{'' if split == 'test' else f'-{split}'}{'-quick' if quick else ''}"


def quantize_runs(work: Path, *, quick: bool = False) -> list[dict[str, Any]]:
    """Return the runs of ``quantize.yaml``: every method at every setting on both models.

    Args:
        work: folder of the demo's data and models.
        quick: only the lowest setting, with fewer calibration samples.
    """
    packages = _packages_folder(work, quick)
    return [
        {
            "name": _name(model, method, (bits, group, acts)),
            "model_args": f"pretrained={work / 'models' / model}",
            "method": method,
            "w_bit": bits,
            "w_group": group,
            "a_bit": acts,
            "reweight": method == "mbq",
            "calib_data": "coco",
            "data_path": str(work / "data" / "calib.json"),
            "n_samples": 16 if quick else 128,
            "run_process": True,
            "output_path": str(packages / _name(model, method, (bits, group, acts))),
            "threads": _THREADS,
            "overwrite": True,  # packages of an older cmibq or of other weights
        }
        for model, method, (bits, group, acts) in _combinations(quick)
    ]


def eval_runs(work: Path, *, split: str = "test", quick: bool = False) -> list[dict[str, Any]]:
    """Return the runs of ``eval.yaml``: both float models, then every package.

    Args:
        work: folder of the demo's data, models and packages.
        split: whose questions are asked.
        quick: only the first questions.
    """
    models = [(f"{model}-float", work / "models" / model) for model in MODELS]
    names = [_name(*found) for found in _combinations(quick)]
    packages, results = (
        _packages_folder(work, quick),
        results_folder(work, split=split, quick=quick),
    )
    runs = []
    for name, source in [*models, *((name, packages / name) for name in names)]:
        run: dict[str, Any] = {
            "name": name,
            "model_args": f"pretrained={source}",
            "data_path": str(work / "data" / f"{split}.json"),
            "output_path": str(results / name),
            "baseline": str(results / f"{name.partition('-')[0]}-float"),
            "threads": _THREADS,
        }
        if quick:
            run |= {"limit": 200, "speed_prompts": 2, "speed_tokens": 8}
        if name.endswith("-float"):
            del run["baseline"]
        runs.append(run)
    return runs
