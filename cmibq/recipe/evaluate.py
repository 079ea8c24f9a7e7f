"""What a measurement does; the fields of ``cmibq eval``."""

from __future__ import annotations

from dataclasses import dataclass

from cmibq.recipe.base import MOST_THREADS, VARIANTS, Weights, at_least, choice, opt, require

__all__ = ["EvalConfig"]


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
    batch_size: int = opt(64, "questions per forward pass")
    output_path: str = opt("", "folder for result.json and samples.jsonl")
    baseline: str = opt("", "result folder of the float model, for flips and excess loss")
    pseudo_quant: bool = opt(False, "round the weights of a float model here, by the fields below")
    scale_path: str = opt("", "file of scales to apply before rounding (pseudo_quant)")
    method: str = opt("", "method that made the scales, for the table; rtn needs no scale_path")
    w_bit: int = opt(16, "bits per weight (pseudo_quant)")
    w_group: int = opt(128, "weights per scale along the input; -1 = whole row (pseudo_quant)")
    a_bit: int = opt(16, "bits per activation (pseudo_quant)")
    variant: str = opt("default", "default, or reference for the published rounding")
    threads: int | None = opt(None, "threads; null takes those of the process")
    speed_prompts: int = opt(8, "questions of the speed measurement; 0 leaves it out")
    speed_tokens: int = opt(32, "tokens generated per question in the speed measurement")

    def __post_init__(self) -> None:
        self.check_bits(self.w_bit, self.w_group, self.a_bit)
        choice("variant", self.variant, VARIANTS)
        at_least("limit", self.limit, 1)
        at_least("batch_size", self.batch_size, 1)
        at_least("threads", self.threads, 1, MOST_THREADS)
        at_least("speed_prompts", self.speed_prompts, 0)
        at_least("speed_tokens", self.speed_tokens, 1)
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
