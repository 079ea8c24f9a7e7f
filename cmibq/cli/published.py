"""The flags of MBQ's ``main_quant.py`` and ``main.py``, with their defaults, on our recipes.

The fields are those of `QuantRecipe` and `EvalConfig`; only defaults differ, and a few flags of the
published scripts are added. A run made here equals the same run of ``cmibq quantize``.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmibq.cli.evaluate import evaluate_runs
from cmibq.cli.options import read_options
from cmibq.cli.quantize import CONFIGS, LIST, list_configs, quantize_runs
from cmibq.errors import ConfigError
from cmibq.recipe import EvalConfig, QuantRecipe
from cmibq.recipe.base import opt

__all__ = ["PublishedEval", "PublishedQuant", "run_eval", "run_quant"]

_DEVICES = ("", "auto", "cpu")
_SCALES = "made the scales: checked against scale_path"
_logger = logging.getLogger(__name__)


def _check_device(device: str) -> None:
    if device not in _DEVICES:
        raise ConfigError(f"device is {device!r}; everything runs on cpu, leave it out")


@dataclass(frozen=True)
class PublishedQuant(QuantRecipe):
    """`QuantRecipe` with the defaults of ``main_quant.py``.

    Raises:
        ConfigError: as `QuantRecipe`, or another device than the CPU.

    Example:
        >>> made = PublishedQuant(w_bit=3)
        >>> made.calib_data, made.method, made.recipe == QuantRecipe(
        ...     w_bit=3, calib_data="pileval", method="awq"
        ... )
        ('pileval', 'awq', True)
    """

    method: str = opt("awq", "search method: rtn, awq, smoothquant, mbq")
    w_bit: int = opt(8, "bits per weight: 2..8 (1 with pseudo_quant)")
    calib_data: str = opt("pileval", "calibration data: pileval (text) or coco (images and text)")
    batch_size: int = opt(1, "accepted as published; calibration batches are formed by length")
    device: str = opt("", "cpu; others are refused")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_device(self.device)

    @property
    def recipe(self) -> QuantRecipe:
        """The same run as ``cmibq quantize`` has it."""
        names = [f.name for f in dataclasses.fields(QuantRecipe)]
        return QuantRecipe(**{n: getattr(self, n) for n in names})


@dataclass(frozen=True)
class PublishedEval(EvalConfig):
    """`EvalConfig` with the defaults of ``main.py``, and what it knows about the search.

    What tells how scales were made (``alpha``, ``reweight``, ...) must agree with the file at
    ``scale_path``, where that says; the data flags of the search are accepted and not used.

    Raises:
        ConfigError: as `EvalConfig`, or another device than the CPU.
    """

    batch_size: int = opt(1, "questions per forward pass")
    method: str = opt("awq", "method that made the scales; rtn needs no scale_path")
    w_bit: int = opt(8, "bits per weight (pseudo_quant)")
    alpha: float | None = opt(None, f"SmoothQuant's migration strength that {_SCALES}")
    reweight: bool = opt(False, f"whether gradients {_SCALES}")
    distort: bool = opt(False, f"whether quantised inputs {_SCALES}")
    loss_mode: str | None = opt(None, f"loss that {_SCALES}")
    calib_data: str = opt("", "calibration data of the search; not used here")
    n_samples: int | None = opt(None, "samples of the search; not used here")
    few_shot_format: bool = opt(False, "samples of the search in pairs; not used here")
    interleave_format: bool = opt(False, "samples of the search with text; not used here")
    text_data_path: str = opt("", "texts of the search; not used here")
    device: str = opt("", "cpu; others are refused")

    def __post_init__(self) -> None:
        _check_device(self.device)
        EvalConfig(**self._values())

    @property
    def made_by(self) -> dict[str, Any]:
        """What was said about how the scales were made."""
        named = {n: getattr(self, n) for n in ("alpha", "reweight", "distort", "loss_mode")}
        return {n: value for n, value in named.items() if value not in (None, False)}

    @property
    def config(self) -> EvalConfig:
        """The same run as ``cmibq eval`` has it."""
        return EvalConfig(**self._values())

    def _values(self) -> dict[str, Any]:
        names = [f.name for f in dataclasses.fields(EvalConfig)]
        values = {n: getattr(self, n) for n in names}
        if self.tasks:  # the published script knows data only for the search
            values |= {"data_path": "", "image_folder": ""}
        if not self.pseudo_quant:
            values |= {"scale_path": "", "method": "", "w_bit": 16, "a_bit": 16}
        return values


def run_quant(words: Sequence[str]) -> int:
    """Search scales as ``python main_quant.py`` does."""
    options = read_options(
        "main_quant",
        PublishedQuant,
        words,
        about="Search scales as MBQ's main_quant.py does (see also: cmibq quantize).",
        switches=LIST,
        shipped=CONFIGS,
        prog="python -m cmibq.main_quant",
    )
    if "list-configs" in options.switches:
        list_configs()
    elif not options.done:
        return quantize_runs([run.recipe for run in options.runs])
    return 0


def run_eval(words: Sequence[str]) -> int:
    """Measure as ``python main.py`` does."""
    options = read_options(
        "main",
        PublishedEval,
        words,
        about="Measure a model as MBQ's main.py does (see also: cmibq eval).",
        shipped=CONFIGS,
        prog="python -m cmibq.main",
    )
    if options.done:
        return 0
    for run in options.runs:
        if not run.pseudo_quant and (run.scale_path or run.w_bit < 8 or run.a_bit < 16):
            _logger.warning("pseudo_quant is not set: the model is measured as it is")
        if run.made_by and run.scale_path and run.pseudo_quant:
            _check_scales(run)
    evaluate_runs([run.config for run in options.runs])
    return 0


def _check_scales(run: PublishedEval) -> None:
    from cmibq.io import check_made_for, load_scales

    path = Path(run.scale_path).expanduser()
    said = load_scales(path).provenance
    check_made_for(path, {n: v for n, v in run.made_by.items() if said.get(n) is not None})
