"""What a measurement does; the fields of ``cmibq eval``."""

from __future__ import annotations

from dataclasses import dataclass

from cmibq.recipe.base import (
    MOST_THREADS,
    VARIANTS,
    Weights,
    at_least,
    choice,
    opt,
    parse_scope,
    require,
)
from cmibq.recipe.kinds import check_kinds

__all__ = ["METRICS", "EvalConfig"]

METRICS = ("likelihood", "exact_match", "vqa")
_OF_TASKS = ("include_path", "num_fewshot", "gen_kwargs")


@dataclass(frozen=True)
class EvalConfig(Weights):
    """One measurement; the fields of ``cmibq eval``.

    Raises:
        ConfigError: a field is out of range or conflicts with another.

    Example:
        >>> EvalConfig(model_args="pretrained=out/mbq", data_path="test.json").batch_size
        64
    """

    name: str = opt("", "name of the run, for tables and messages")
    model: str = opt("auto", "model family, or auto to read it from the model's config.json")
    model_args: str = opt("", "pretrained=DIR, a Hugging Face model folder or a cmibq package")
    data_path: str = opt("", "questions with answers, LLaVA format: .json or .jsonl")
    image_folder: str = opt("", "folder that image paths start from; default: that of data_path")
    limit: int | None = opt(None, "measure the first so many questions only")
    tasks: str = opt("", "lmms-eval tasks, comma-separated, instead of data_path")
    include_path: str = opt("", "folder of further lmms-eval task files (tasks)")
    num_fewshot: int | None = opt(None, "examples before each question (tasks)")
    gen_kwargs: str = opt("", "generation settings such as max_new_tokens=32 (tasks)")
    metric: str = opt("likelihood", "likelihood; or exact_match, vqa: generate answers, compare")
    max_new_tokens: int = opt(16, "tokens generated per answer (exact_match, vqa)")
    batch_size: int = opt(64, "questions per forward pass")
    output_path: str = opt("", "folder for result.json and samples.jsonl")
    log_samples: bool = opt(False, "write what was asked and answered (always so with data_path)")
    log_samples_suffix: str = opt("", "ending of the names of files with samples")
    baseline: str = opt("", "result folder of the float model, for flips and excess loss")
    pseudo_quant: bool = opt(False, "round the weights of a float model here, to the nearest level")
    scale_path: str = opt("", "file of scales to apply before rounding (pseudo_quant)")
    method: str = opt("", "method that made the scales, for the table; rtn needs no scale_path")
    w_bit: int = opt(16, "bits per weight (pseudo_quant)")
    w_group: int = opt(128, "weights per scale along the input; -1 = whole row (pseudo_quant)")
    a_bit: int = opt(16, "bits per activation (pseudo_quant)")
    scope: str = opt("lm", "what is rounded: lm, projector, vision, by commas (pseudo_quant)")
    variant: str = opt("default", "default, or reference for the published rounding")
    run_process: bool = opt(False, "must be false: scales are searched by quantize")
    threads: int | None = opt(None, "threads; null takes those of the process")
    speed_prompts: int = opt(8, "questions of the speed measurement; 0 leaves it out")
    speed_tokens: int = opt(32, "tokens generated per question in the speed measurement")

    def __post_init__(self) -> None:
        check_kinds(self)
        self.check_bits(self.w_bit, self.w_group, self.a_bit)
        choice("variant", self.variant, VARIANTS)
        parse_scope(self.scope)
        at_least("limit", self.limit, 1)
        at_least("batch_size", self.batch_size, 1)
        at_least("threads", self.threads, 1, MOST_THREADS)
        at_least("speed_prompts", self.speed_prompts, 0)
        at_least("speed_tokens", self.speed_tokens, 1)
        at_least("num_fewshot", self.num_fewshot, 0)
        at_least("max_new_tokens", self.max_new_tokens, 1)
        choice("metric", self.metric, METRICS)
        self._check_questions()
        self._check_rounding()

    def _check_questions(self) -> None:
        """Refuse questions from two places, and settings of one kind with the other."""
        require(
            not (self.tasks and self.data_path),
            "tasks and data_path are both set; choose lmms-eval tasks or your own questions",
        )
        strays = [n for n in _OF_TASKS if getattr(self, n) not in ("", None)]
        require(
            bool(self.tasks) or not strays,
            f"{', '.join(strays)} set without tasks; these belong to lmms-eval, leave them out",
        )
        require(
            not self.tasks or self.metric == "likelihood",
            f"metric is {self.metric!r} with tasks, which have metrics of their own; leave it out",
        )
        require(
            not self.log_samples or bool(self.output_path),
            "log_samples is set without output_path; name the folder to write them to",
        )
        require(
            "/" not in self.log_samples_suffix,
            f"log_samples_suffix is {self.log_samples_suffix!r}; it must not have a slash",
        )
        require(
            not self.run_process,
            "run_process is set; scales are searched by quantize (main_quant), leave it out here",
        )

    def _check_rounding(self) -> None:
        """Refuse bits and scales that nothing would use."""
        if self.pseudo_quant:
            require(self.w_bit < 16, "pseudo_quant is set but w_bit is 16; set w_bit to 1..8")
            require(
                bool(self.scale_path) or self.method in ("", "rtn"),
                f"pseudo_quant with method {self.method!r} needs scale_path; only rtn has none",
            )
        else:
            given = [n for n in ("scale_path",) if getattr(self, n)]
            given += [n for n in ("w_bit", "a_bit") if getattr(self, n) < 16]
            require(
                not given,
                f"{', '.join(given)} set without pseudo_quant; a package has its own bits and"
                " scales: set pseudo_quant for a float model or leave them out",
            )
