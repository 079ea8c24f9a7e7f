"""The fields of ``cmibq verify`` and ``cmibq export``."""

from __future__ import annotations

from dataclasses import dataclass

from cmibq.recipe.base import MOST_THREADS, at_least, choice, opt, require
from cmibq.recipe.kinds import check_kinds

__all__ = ["ExportConfig", "VerifyConfig"]


@dataclass(frozen=True)
class VerifyConfig:
    """One comparison of a quantised model with the float model it was made from.

    Raises:
        ConfigError: no folder, or a number out of range.

    Example:
        >>> VerifyConfig(path="out/mbq-w4").n_samples
        8
    """

    path: str = opt("", "folder of the quantised model")
    against: str = opt("", "folder of the float model; default: the one it was made from")
    data_path: str = opt("", "samples, as in quantize; default: random text")
    image_folder: str = opt("", "folder that image paths start from; default: that of data_path")
    n_samples: int = opt(8, "samples at most (2048 tokens together)")
    max_kl: float | None = opt(None, "nats per token that are allowed; null: by the bits")
    min_top1: float | None = opt(None, "share of equal top tokens asked for; null: by the bits")
    output_path: str = opt("", "JSON file for the numbers")
    threads: int | None = opt(None, "threads; null takes those of the process")

    def __post_init__(self) -> None:
        check_kinds(self)
        require(bool(self.path), "name a folder: cmibq verify DIR")
        at_least("n_samples", self.n_samples, 1)
        at_least("threads", self.threads, 1, MOST_THREADS)
        require(
            self.max_kl is None or self.max_kl >= 0, f"max_kl is {self.max_kl}; it must be >= 0"
        )
        require(
            self.min_top1 is None or 0 <= self.min_top1 <= 1,
            f"min_top1 is {self.min_top1}; allowed are 0..1",
        )


@dataclass(frozen=True)
class ExportConfig:
    """One export of a package into another format.

    Raises:
        ConfigError: no folder, or an unknown format.

    Example:
        >>> ExportConfig(path="out/mbq-w4", output_path="out/gguf").format
        'gguf'
    """

    path: str = opt("", "package to export")
    output_path: str = opt("", "folder to make")
    format: str = opt("gguf", "gguf, compressed-tensors or cmibq")
    exact: bool = opt(False, "gguf: 4-bit weights with zero points as Q5_0, which rounds nothing")
    mmproj: bool = opt(True, "gguf: also write vision tower and projector")
    overwrite: bool = opt(False, "replace what is at output_path")

    def __post_init__(self) -> None:
        check_kinds(self)
        require(bool(self.path), "name a package: cmibq export DIR --output_path FOLDER")
        require(bool(self.output_path), "output_path is empty; name the folder to make")
        choice("format", self.format, ("gguf", "compressed-tensors", "cmibq"))
