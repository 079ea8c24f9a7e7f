"""What a quantisation run does; the fields of ``cmibq quantize``."""

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
from cmibq.recipe.sizes import parse_size

__all__ = ["QuantRecipe"]

_LOSSES = ("mae", "mse")
_EFFORTS = ("full", "race")
_BAD_ITEMS = ("error", "skip")
_FORMATS = ("auto", "cmibq", "compressed-tensors")
_COMPENSATIONS = ("none", "gptq", "learned")


@dataclass(frozen=True)
class QuantRecipe(Weights):
    """One quantisation run; the fields of ``cmibq quantize``.

    Weight-only recipes (a_bit 16) use an asymmetric grid per group of w_group weights, unless w_sym
    is set. With a_bit below 16 weights are symmetric, and activations are quantised per token while
    running. Symmetric results are written as compressed-tensors, which needs no cmibq to be opened.

    Raises:
        ConfigError: a field is out of range or conflicts with another.

    Example:
        >>> QuantRecipe(w_bit=9)
        Traceback (most recent call last):
        ...
        cmibq.errors.ConfigError: w_bit is 9; allowed are 1..8 or 16 (float)
    """

    name: str = opt("", "name of the run, for tables and messages")
    model: str = opt("auto", "model family, or auto to read it from the model's config.json")
    model_args: str = opt("", "pretrained=DIR, a local Hugging Face model folder")
    method: str = opt("mbq", "search method: rtn, awq, smoothquant, mbq")
    w_bit: int = opt(4, "bits per weight: 2..8 (1 with pseudo_quant)")
    w_group: int = opt(128, "weights per scale along the input: a multiple of 8; -1 = whole row")
    a_bit: int = opt(16, "bits per activation: 8, or 16 to leave activations as they are")
    w_sym: bool | None = opt(
        None, "symmetric weights; null: with a_bit below 16 or format compressed-tensors"
    )
    embed_bit: int = opt(16, "bits of the token embedding: 2..8, or 16 to leave it as it is")
    head_bit: int = opt(16, "bits of the output layer: 2..8, or 16 to leave it as it is")
    scope: str = opt("lm", "what is quantised: lm, projector, vision, separated by commas")
    alpha: float = opt(0.5, "SmoothQuant's migration strength, 0..1")
    reweight: bool = opt(False, "weigh image against answer tokens by their gradients (mbq)")
    distort: bool = opt(False, "search on inputs as already quantised layers make them (mbq, awq)")
    loss_mode: str | None = opt(None, "mae or mse; null takes the method's own (awq mse, mbq mae)")
    variant: str = opt("default", "default, or reference for the published behaviour bit for bit")
    n_grid: int = opt(20, "candidate scales per group of layers")
    clip: bool | None = opt(
        None, "choose ranges by their error; null: yes, but not for rtn or reference"
    )
    compensate: str | None = opt(
        None,
        "none; gptq: later inputs make up for earlier ones; learned: blocks, by their output; null:"
        " for mbq gptq at 3 bits and learned below, else none",
    )
    learn_steps: int = opt(200, "steps of learning per block (compensate learned)")
    bias_correction: bool = opt(False, "move the mean error of every output into its bias")
    effort: str | None = opt(
        None, "race: drop candidates that cannot win early; or full; null: race, reference full"
    )
    calib_data: str = opt("coco", "calibration data: coco (images and text) or pileval (text)")
    data_path: str = opt("", "calibration items: .json, .jsonl or .parquet (pileval: also .txt)")
    image_folder: str = opt("", "folder that image paths start from; default: that of data_path")
    text_data_path: str = opt("", "texts of interleave_format; default: the cached pile-val-backup")
    bad_items: str = opt("error", "items that cannot be used: error, or skip (with a warning each)")
    n_samples: int = opt(128, "calibration samples")
    few_shot_format: bool = opt(False, "join samples in pairs (coco only)")
    interleave_format: bool = opt(False, "join pairs with 512 tokens of text between (coco only)")
    run_process: bool = opt(False, "search the scales; without it they are read from scale_path")
    pseudo_quant: bool = opt(False, "write rounded float weights, an ordinary model folder")
    scale_path: str = opt("", "file of scales, .pt or .safetensors: written, or read and applied")
    output_path: str = opt("", "folder to write the quantised model to")
    format: str = opt(
        "auto", "auto (compressed-tensors where it can be), cmibq, or compressed-tensors"
    )
    verify: bool = opt(True, "open the result and compare it with the float model")
    seed: int = opt(42, "seed of the choice of samples")
    threads: int | None = opt(None, "threads; null takes those of the process")
    max_bytes: str = opt("", "most bytes of the weights file, such as 2.5GB: bits differ by rows")
    max_memory: str = opt("", "most memory of the process, such as 4GB; data goes to files beyond")
    overwrite: bool = opt(False, "replace results of another recipe at output_path or scale_path")

    def __post_init__(self) -> None:
        check_kinds(self)
        self.check_bits(self.w_bit, self.w_group, self.a_bit)
        require(self.w_bit < 16, "w_bit is 16: nothing to quantise; set w_bit to 2..8")
        require(
            self.pseudo_quant or self.w_bit > 1,
            "w_bit is 1; packed layers compute with w_bit 2..8 (or set pseudo_quant)",
        )
        require(
            self.pseudo_quant or self.a_bit in (8, 16),
            f"a_bit is {self.a_bit}; packed layers compute with a_bit 8 or 16 (measure others with"
            " eval --pseudo_quant)",
        )
        require(
            not (self.pseudo_quant and self.a_bit < 16 and self.output_path),
            f"pseudo_quant with a_bit {self.a_bit} cannot be written as a model folder; leave"
            " output_path out and measure with eval --pseudo_quant",
        )
        self._check_scope()
        require(0.0 <= self.alpha <= 1.0, f"alpha is {self.alpha}; allowed are 0..1")
        choice("variant", self.variant, VARIANTS)
        self._check_format()
        if self.effort is not None:
            choice("effort", self.effort, _EFFORTS if self.variant == "default" else ("full",))
        if self.loss_mode is not None:
            choice("loss_mode", self.loss_mode, _LOSSES)
        at_least("n_grid", self.n_grid, 2)
        at_least("n_samples", self.n_samples, 1)
        at_least("seed", self.seed, 0)
        at_least("threads", self.threads, 1, MOST_THREADS)
        if self.max_memory:
            parse_size("max_memory", self.max_memory)
        if self.max_bytes:
            self._check_budget()
        self._check_calibration()
        self._check_rounding()

    def _check_scope(self) -> None:
        require(
            parse_scope(self.scope) == ("lm",) or self.variant == "default",
            f"scope is {self.scope!r} with variant 'reference'; the published methods quantise the"
            " language model alone, leave scope out",
        )
        idle = [n for n in ("reweight", "distort") if getattr(self, n)]
        require(
            "lm" in parse_scope(self.scope) or not idle,
            f"{', '.join(idle)} set with scope {self.scope!r}; they are about blocks of the"
            " language model: add lm to scope, or leave them out",
        )

    def _check_rounding(self) -> None:
        choice("compensate", self.compensate or "none", _COMPENSATIONS)
        asked = [n for n in ("clip", "bias_correction") if getattr(self, n)]
        asked += ["compensate"] if self.compensate not in (None, "none") else []
        require(
            self.variant == "default" or not asked,
            f"{', '.join(asked)} set with variant 'reference', which rounds to the nearest level of"
            " the full range, as published; leave it out, or take variant 'default'",
        )
        needy = [n for n in asked if n != "clip"]
        require(
            self.run_process or not needy,
            f"{', '.join(needy)} set without run_process; it needs calibration data: set"
            " run_process and data_path",
        )
        learned = self.compensation == "learned"
        at_least("learn_steps", self.learn_steps, 1)
        require(
            learned or self.learn_steps == type(self).learn_steps,
            f"learn_steps is {self.learn_steps} with compensate {self.compensation!r}, which takes"
            " no steps; set compensate to learned or leave it out",
        )
        require(
            not (self.bias_correction and learned),
            "bias_correction is set with compensate 'learned', which lowers the error of whole"
            " blocks and not the mean of every layer; leave one of them out",
        )
        require(
            not (self.bias_correction and self.pseudo_quant),
            "bias_correction is set with pseudo_quant; an ordinary model folder has no place for"
            " new biases, leave one of them out",
        )
        require(
            not (self.bias_correction and self.format == "compressed-tensors"),
            "bias_correction is set with format 'compressed-tensors', whose layers have the biases"
            " of the model; leave one of them out",
        )

    def _check_budget(self) -> None:
        parse_size("max_bytes", self.max_bytes)
        require(
            not self.bias_correction,
            "max_bytes is set with bias_correction, whose new biases it does not count; leave one"
            " of them out",
        )
        require(
            self.run_process and not self.pseudo_quant,
            "max_bytes needs calibration and packed layers; set run_process, not pseudo_quant",
        )
        require(
            self.variant == "default" and self.format != "compressed-tensors",
            f"max_bytes is set with variant {self.variant!r} and format {self.format!r}; bits that"
            " differ between rows need variant default and format auto or cmibq",
        )

    def _check_format(self) -> None:
        choice("format", self.format, _FORMATS)
        require(
            self.w_sym is not False or self.a_bit == 16,
            f"w_sym is false with a_bit {self.a_bit}; quantised activations need symmetric weights,"
            " leave it out",
        )
        portable = self.format == "compressed-tensors"
        require(
            not (portable and self.w_sym is False),
            "w_sym is false with format 'compressed-tensors', which loads symmetric weights only;"
            " leave w_sym out or set format to cmibq",
        )
        require(
            not (portable and self.pseudo_quant),
            "format is 'compressed-tensors' with pseudo_quant, which writes float weights; leave"
            " one of them out",
        )
        require(
            not portable or self.embed_bit == 16,
            f"embed_bit is {self.embed_bit} with format 'compressed-tensors'; transformers opens"
            " packed linear layers only, leave embed_bit out or set format to cmibq",
        )
        for name in ("embed_bit", "head_bit"):
            bits = getattr(self, name)
            require(bits in (*range(2, 9), 16), f"{name} is {bits}; allowed are 2..8 or 16 (float)")
            require(
                bits == 16 or not self.pseudo_quant,
                f"{name} is {bits} with pseudo_quant, which leaves tables as they are; leave one of"
                " them out",
            )
        require(
            not self.symmetric or self.w_bit > 1,
            f"w_bit is {self.w_bit} with symmetric weights; they need w_bit 2..8",
        )

    def _check_calibration(self) -> None:
        for flag in ("few_shot_format", "interleave_format", "text_data_path", "reweight"):
            require(
                not (getattr(self, flag) and self.calib_data != "coco"),
                f"{flag} is set with calib_data {self.calib_data!r}; it applies to coco only",
            )
        require(
            not (self.few_shot_format and self.interleave_format),
            "few_shot_format and interleave_format are both set; choose one",
        )
        require(
            self.interleave_format or not self.text_data_path,
            "text_data_path is set without interleave_format; set that too or leave it out",
        )
        choice("bad_items", self.bad_items, _BAD_ITEMS)
        require(
            not self.reweight or self.method == "mbq",
            f"reweight is set with method {self.method!r}; it belongs to mbq, leave it out",
        )
        require(
            not self.distort or self.method in ("mbq", "awq"),
            f"distort is set with method {self.method!r}; it belongs to mbq and awq, leave it out",
        )

    @property
    def symmetric(self) -> bool:
        """Whether weights take a symmetric grid: if asked for, or with quantised activations."""
        if self.w_sym is not None:
            return self.w_sym
        return self.a_bit < 16 or self.format == "compressed-tensors"

    @property
    def clips(self) -> bool:
        """Whether ranges are chosen by their error; by default wherever the method is not plain."""
        if self.clip is not None:
            return self.clip
        return self.variant == "default" and self.method != "rtn"

    @property
    def compensation(self) -> str:
        """How errors of rounding are made up for; by default where they cost mbq much."""
        if self.compensate is not None:
            return self.compensate
        fits = self.method == "mbq" and self.variant == "default" and self.run_process
        if not fits or not self.output_path or (self.w_bit > 3 and not self.max_bytes):
            return "none"
        plain = self.w_bit == 3 or self.max_bytes or self.bias_correction
        return "gptq" if plain else "learned"

    @property
    def races(self) -> bool:
        """Whether candidates that cannot win are dropped early; never in the reference variant."""
        return self.variant == "default" and self.effort != "full"

    @property
    def group_size(self) -> int:
        """Weights per scale; the reference variant of weight-activation recipes has whole rows."""
        return -1 if self.a_bit < 16 and self.variant == "reference" else self.w_group
