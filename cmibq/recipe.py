"""What a run does: frozen dataclasses, the same for YAML files, flags and Python.

Flag = YAML key = field. Fields are checked when the object is made, so that a wrong value is told
before a model is loaded; what needs files or registries is checked by `cmibq.ptq.check`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmibq.errors import ConfigError, nearest

__all__ = ["MOST_THREADS", "EvalConfig", "QuantRecipe", "fingerprint", "parse_model_args"]

_LOSSES = ("mae", "mse")
_VARIANTS, _EFFORTS = ("default", "reference"), ("full", "race")
_DEVICES = ("auto", "cpu")
MOST_THREADS = 1024  # thread libraries crash beyond
_NO_EFFECT = frozenset(  # on what comes out
    "name model_args data_path image_folder text_data_path scale_path output_path run_process"
    " threads overwrite".split()
)


def _opt(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _choice(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, f"{name} is {value!r}; allowed are {', '.join(allowed)}")


def _at_least(name: str, value: int | None, lowest: int, most: int | None = None) -> None:
    text = f"{name} is {value}; allowed are integers from {lowest}{f' to {most}' if most else ''}"
    _require(value is None or lowest <= value <= (most or value), text)


def parse_model_args(text: str) -> Path:
    """Return the model folder of ``"pretrained=DIR"``.

    Args:
        text: ``key=value`` pairs separated by commas. Allowed are ``pretrained`` (needed) and
            ``device_map`` with the values auto and cpu, which both mean the CPU.

    Raises:
        ConfigError: ``pretrained`` is missing, or there is another key or value.

    Example:
        >>> str(parse_model_args("pretrained=models/llava,device_map=auto"))
        'models/llava'
    """
    _require("=" in text, f"model_args is {text!r}; write pretrained=DIR, a local model folder")
    parts = re.split(r",\s*(?=\w+\s*=)", text.strip(" ,"))  # a folder may have a comma in its name
    pairs = dict(part.partition("=")[::2] for part in parts)
    pairs = {key.strip(): value.strip() for key, value in pairs.items()}
    for key in pairs:
        hint = nearest(key, ("pretrained", "device_map"))
        _require(key in ("pretrained", "device_map"), f"model_args has unknown key {key!r}; {hint}")
    _choice("device_map of model_args", pairs.get("device_map", "auto"), _DEVICES)
    folder = pairs.get("pretrained", "")
    _require(bool(folder), f"model_args is {text!r}; write pretrained=DIR, a local model folder")
    return Path(folder).expanduser()


@dataclass(frozen=True)
class _Weights:
    """Checks shared by what makes and what measures a quantised model."""

    def _check_bits(self, w_bit: int, w_group: int, a_bit: int) -> None:
        _require(w_bit in (*range(1, 9), 16), f"w_bit is {w_bit}; allowed are 1..8 or 16 (float)")
        _require(a_bit in (*range(2, 9), 16), f"a_bit is {a_bit}; allowed are 2..8 or 16 (float)")
        _require(
            w_group in (-1, 0) or (w_group >= 8 and w_group % 8 == 0),
            f"w_group is {w_group}; allowed are multiples of 8, or -1 for one scale per row",
        )
        if a_bit < 16:
            _require(
                w_bit != 16, f"a_bit is {a_bit} but w_bit is 16; set w_bit to 2..8 or a_bit to 16"
            )
            _require(
                w_bit >= 2,
                f"w_bit is {w_bit} with a_bit {a_bit}: weights are then symmetric and need w_bit"
                " 2..8; raise w_bit or set a_bit to 16",
            )


@dataclass(frozen=True)
class QuantRecipe(_Weights):
    """One quantisation run; the fields of ``cmibq quantize``.

    Weight-only recipes (a_bit 16) use an asymmetric grid per group of w_group weights. With a_bit
    below 16 weights are symmetric, and activations are quantised per token while running.

    Raises:
        ConfigError: a field is out of range or conflicts with another.

    Example:
        >>> QuantRecipe(w_bit=9)
        Traceback (most recent call last):
        ...
        cmibq.errors.ConfigError: w_bit is 9; allowed are 1..8 or 16 (float)
    """

    name: str = _opt("", "name of the run, for tables and messages")
    model: str = _opt("auto", "model family, or auto to read it from the model's config.json")
    model_args: str = _opt("", "pretrained=DIR, a local Hugging Face model folder")
    method: str = _opt("mbq", "search method: rtn, awq, smoothquant, mbq")
    w_bit: int = _opt(4, "bits per weight: 2..8 (1 with pseudo_quant)")
    w_group: int = _opt(128, "weights per scale along the input: a multiple of 8; -1 = whole row")
    a_bit: int = _opt(16, "bits per activation: 8, or 16 to leave activations as they are")
    alpha: float = _opt(0.5, "SmoothQuant's migration strength, 0..1")
    reweight: bool = _opt(False, "weigh image against answer tokens by their gradients (mbq)")
    distort: bool = _opt(False, "search on inputs of already quantised layers (not available yet)")
    loss_mode: str | None = _opt(None, "mae or mse; null takes the method's own (awq mse, mbq mae)")
    variant: str = _opt("default", "default, or reference for the published behaviour bit for bit")
    n_grid: int = _opt(20, "candidate scales per group of layers")
    effort: str = _opt("full", "full, or race: drop candidates that cannot win after a few tokens")
    calib_data: str = _opt("coco", "calibration data: coco (images and text) or pileval (text)")
    data_path: str = _opt("", "calibration items: a .json or .jsonl file (pileval: also .txt)")
    image_folder: str = _opt("", "folder that image paths start from; default: that of data_path")
    text_data_path: str = _opt("", "text data of interleave_format (not available yet)")
    n_samples: int = _opt(128, "calibration samples")
    few_shot_format: bool = _opt(False, "join samples in pairs (not available yet)")
    interleave_format: bool = _opt(False, "put text between image samples (not available yet)")
    run_process: bool = _opt(False, "search the scales; without it they are read from scale_path")
    pseudo_quant: bool = _opt(False, "write rounded float weights, an ordinary model folder")
    scale_path: str = _opt("", "file of scales, .pt or .safetensors: written, or read and applied")
    output_path: str = _opt("", "folder to write the quantised model to")
    seed: int = _opt(42, "seed of the choice of samples")
    threads: int | None = _opt(None, "threads; null takes those of the process")
    overwrite: bool = _opt(False, "replace results of another recipe at output_path or scale_path")

    def __post_init__(self) -> None:
        self._check_bits(self.w_bit, self.w_group, self.a_bit)
        _require(self.w_bit < 16, "w_bit is 16: nothing to quantise; set w_bit to 2..8")
        _require(
            self.pseudo_quant or self.w_bit > 1,
            "w_bit is 1; packed layers compute with w_bit 2..8 (or set pseudo_quant)",
        )
        _require(
            self.pseudo_quant or self.a_bit in (8, 16),
            f"a_bit is {self.a_bit}; packed layers compute with a_bit 8 or 16 (measure others with"
            " eval --pseudo_quant)",
        )
        _require(
            not (self.pseudo_quant and self.a_bit < 16 and self.output_path),
            f"pseudo_quant with a_bit {self.a_bit} cannot be written as a model folder; leave"
            " output_path out and measure with eval --pseudo_quant",
        )
        _require(0.0 <= self.alpha <= 1.0, f"alpha is {self.alpha}; allowed are 0..1")
        _choice("variant", self.variant, _VARIANTS)
        _choice("effort", self.effort, _EFFORTS if self.variant == "default" else ("full",))
        if self.loss_mode is not None:
            _choice("loss_mode", self.loss_mode, _LOSSES)
        _at_least("n_grid", self.n_grid, 2)
        _at_least("n_samples", self.n_samples, 1)
        _at_least("seed", self.seed, 0)
        _at_least("threads", self.threads, 1, MOST_THREADS)
        self._check_calibration()

    def _check_calibration(self) -> None:
        for flag in ("few_shot_format", "interleave_format", "reweight"):
            _require(
                not (getattr(self, flag) and self.calib_data != "coco"),
                f"{flag} is set with calib_data {self.calib_data!r}; it applies to coco only",
            )
        _require(
            not (self.few_shot_format and self.interleave_format),
            "few_shot_format and interleave_format are both set; choose one",
        )
        for flag in ("few_shot_format", "interleave_format", "distort", "text_data_path"):
            _require(not getattr(self, flag), f"{flag} is not available yet; leave it out")
        _require(
            not self.reweight or self.method == "mbq",
            f"reweight is set with method {self.method!r}; it belongs to mbq, leave it out",
        )

    @property
    def symmetric(self) -> bool:
        """Whether weights take a symmetric grid: with quantised activations."""
        return self.a_bit < 16

    @property
    def group_size(self) -> int:
        """Weights per scale; the reference variant of weight-activation recipes has whole rows."""
        return -1 if self.symmetric and self.variant == "reference" else self.w_group


@dataclass(frozen=True)
class EvalConfig(_Weights):
    """One measurement; the fields of ``cmibq eval``.

    Raises:
        ConfigError: a field is out of range or conflicts with another.

    Example:
        >>> EvalConfig(model_args="pretrained=out/mbq", data_path="test.json").batch_size
        64
    """

    name: str = _opt("", "name of the run, for tables and messages")
    model: str = _opt("auto", "model family, or auto to read it from the model's config.json")
    model_args: str = _opt("", "pretrained=DIR, a Hugging Face model folder or a cmibq package")
    data_path: str = _opt("", "questions with answers, LLaVA format: .json or .jsonl")
    image_folder: str = _opt("", "folder that image paths start from; default: that of data_path")
    limit: int | None = _opt(None, "measure the first so many questions only")
    batch_size: int = _opt(64, "questions per forward pass")
    output_path: str = _opt("", "folder for result.json and samples.jsonl")
    baseline: str = _opt("", "result folder of the float model, for flips and excess loss")
    pseudo_quant: bool = _opt(False, "round the weights of a float model here, by the fields below")
    scale_path: str = _opt("", "file of scales to apply before rounding (pseudo_quant)")
    method: str = _opt("", "method that made the scales, for the table; rtn needs no scale_path")
    w_bit: int = _opt(16, "bits per weight (pseudo_quant)")
    w_group: int = _opt(128, "weights per scale along the input; -1 = whole row (pseudo_quant)")
    a_bit: int = _opt(16, "bits per activation (pseudo_quant)")
    variant: str = _opt("default", "default, or reference for the published rounding")
    threads: int | None = _opt(None, "threads; null takes those of the process")
    speed_prompts: int = _opt(8, "questions of the speed measurement; 0 leaves it out")
    speed_tokens: int = _opt(32, "tokens generated per question in the speed measurement")

    def __post_init__(self) -> None:
        self._check_bits(self.w_bit, self.w_group, self.a_bit)
        _choice("variant", self.variant, _VARIANTS)
        _at_least("limit", self.limit, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("threads", self.threads, 1, MOST_THREADS)
        _at_least("speed_prompts", self.speed_prompts, 0)
        _at_least("speed_tokens", self.speed_tokens, 1)
        if self.pseudo_quant:
            _require(self.w_bit < 16, "pseudo_quant is set but w_bit is 16; set w_bit to 1..8")
            _require(
                bool(self.scale_path) or self.method in ("", "rtn"),
                f"pseudo_quant with method {self.method!r} needs scale_path; only rtn has none",
            )
        else:
            given = [n for n in ("scale_path",) if getattr(self, n)]
            given += [n for n in ("w_bit", "a_bit") if getattr(self, n) < 16]
            _require(
                not given,
                f"{', '.join(given)} set without pseudo_quant; a package has its own bits and"
                " scales: set pseudo_quant for a float model or leave them out",
            )


@functools.lru_cache(maxsize=4096)
def _digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(path: Path) -> Any:
    """Hash a file, or the files of a folder (not those below it), by content."""
    if path.is_dir():
        return {p.name: _content(p) for p in sorted(path.iterdir()) if p.is_file()}
    if not path.is_file():
        return None
    stat = path.stat()
    return _digest(str(path), stat.st_size, stat.st_mtime_ns)


def fingerprint(recipe: QuantRecipe, inputs: Mapping[str, str] | None = None) -> str:
    """Return a sha256 that is equal exactly when two recipes must give the same result.

    It covers the fields that change the result and the *content* of the model folder and data
    files; where these lie, names, threads and outputs do not count.

    Args:
        recipe: the recipe.
        inputs: content hashes of other inputs, such as the images used, by name.

    Example:
        >>> a, b = QuantRecipe(name="a"), QuantRecipe(name="b")
        >>> fingerprint(a) == fingerprint(b) != fingerprint(QuantRecipe(w_bit=3))
        True
    """
    from cmibq import __version__

    fields = dataclasses.asdict(recipe).items()
    facts: dict[str, Any] = {k: v for k, v in fields if k not in _NO_EFFECT}
    if recipe.model_args:
        facts["model_files"] = _content(parse_model_args(recipe.model_args))
    if recipe.data_path:
        facts["data_file"] = _content(Path(recipe.data_path).expanduser())
    if recipe.scale_path and not recipe.run_process:
        facts["scale_file"] = _content(Path(recipe.scale_path).expanduser())
    facts |= {"inputs": dict(inputs or {}), "cmibq": __version__}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
