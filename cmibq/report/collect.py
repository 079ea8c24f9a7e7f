"""Read the results of ``cmibq eval``: one folder per run, all about the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmibq.errors import DataError
from cmibq.eval.samples import Sample, read_samples
from cmibq.fileio import read_json

__all__ = ["Run", "load_runs"]

_NEEDED = ("method", "w_bit", "w_group", "a_bit")


@dataclass(frozen=True)
class Run:
    """What one run measured.

    Attributes:
        folder: where the result lies.
        group: folder name of the model it started from; runs of one model belong together.
        result: what ``result.json`` holds.
        samples: one answer per question, the same questions in every run.
    """

    folder: Path
    group: str
    result: dict[str, Any]
    samples: tuple[Sample, ...]

    @property
    def method(self) -> str:
        """Method name; ``float`` is the unquantised model."""
        return str(self.result["method"])

    @property
    def setting(self) -> tuple[int, int, int]:
        """Return (w_bit, w_group, a_bit)."""
        result = self.result
        return int(result["w_bit"]), int(result["w_group"]), int(result["a_bit"])

    def find_image(self, sample: Sample) -> Path:
        """Return the file of the picture that a question is about."""
        config = self.result.get("config", {})
        folder = config.get("image_folder") or Path(config.get("data_path", "")).parent
        return Path(folder) / sample.image


def load_runs(root: Path) -> list[Run]:
    """Read every folder below `root` that holds a ``result.json``.

    Args:
        root: folder of result folders.

    Returns:
        The runs, in the order of their folder names.

    Raises:
        DataError: nothing there, a file that cannot be read (named, with its line), a field that
            is missing, or two runs of one model with the same method and setting.
    """
    files = sorted(root.rglob("result.json"))
    if not files:
        raise DataError(f"no result.json below {root}; run 'cmibq eval' with an output_path there")
    runs: list[Run] = []
    seen: dict[tuple[object, ...], Path] = {}
    for file in files:
        run = _read(file)
        key = (run.group, run.method, run.setting)
        if key in seen:
            raise DataError(
                f"{seen[key]} and {run.folder} both hold {run.method} at {run.setting} of "
                f"{run.group}; keep one of them below {root}"
            )
        seen[key] = run.folder
        runs.append(run)
    return runs


def _read(file: Path) -> Run:
    result = read_json(file)
    missing = [key for key in _NEEDED if key not in result]
    if missing:
        raise DataError(f"{file} lacks {', '.join(missing)}; measure this run again")
    samples = tuple(read_samples(file.parent / "samples.jsonl"))
    if not samples:
        raise DataError(f"{file.parent / 'samples.jsonl'} is empty; measure this run again")
    source = result.get("source") or file.parent
    return Run(file.parent, Path(str(source)).name, result, samples)
