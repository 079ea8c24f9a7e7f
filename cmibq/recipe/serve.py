"""The fields of ``cmibq chat`` and ``cmibq serve``."""

from __future__ import annotations

from dataclasses import dataclass

from cmibq.recipe.base import MOST_SEED, MOST_THREADS, at_least, opt, require
from cmibq.recipe.kinds import check_kinds

__all__ = ["ChatConfig", "ServeConfig"]


@dataclass(frozen=True)
class ChatConfig:
    """One conversation about one image.

    Raises:
        ConfigError: no model or image, an empty question, or a number out of range.

    Example:
        >>> ChatConfig(model_path="out/calm", image_file="cat.png").max_new_tokens
        256
    """

    model_path: str = opt("", "model folder, composed model or cmibq package")
    image_file: str = opt("", "the picture to talk about")
    question: str | None = opt(None, "answer this and stop; default: ask in a conversation")
    max_new_tokens: int = opt(256, "tokens per answer at most")
    temperature: float = opt(0.0, "0 takes the likeliest token, more draws at random")
    seed: int = opt(0, "seed of the draws (temperature)")
    history: bool = opt(True, "answer in view of what was said before")
    threads: int | None = opt(None, "threads; null takes those of the process")

    def __post_init__(self) -> None:
        check_kinds(self)
        require(bool(self.model_path), "model_path is empty; name a folder: --model-path DIR")
        require(bool(self.image_file), "image_file is empty; name a picture: --image-file FILE")
        require(
            self.question is None or bool(self.question.strip()),
            f"question is {self.question!r}; write one, or leave --question out to be asked",
        )
        at_least("max_new_tokens", self.max_new_tokens, 1)
        at_least("seed", self.seed, 0, MOST_SEED)
        require(self.temperature >= 0, f"temperature is {self.temperature}; it must be >= 0")
        at_least("threads", self.threads, 1, MOST_THREADS)


@dataclass(frozen=True)
class ServeConfig:
    """The web demo of a composed model.

    Raises:
        ConfigError: a port or a number of tokens out of range.

    Example:
        >>> ServeConfig().host
        '127.0.0.1'
    """

    model_path: str = opt("", "composed model; default: the small one that ships with cmibq")
    anchor_path: str = opt("", "model with the anchor alone; default: all fusions off")
    augmenting_path: str = opt("", "model with the augmenting tower alone, to compare with")
    int8_path: str = opt("", "package of the composed model; default: made in memory")
    int8: bool = opt(True, "also answer in 8 bits")
    presets: str = opt("", "JSON list of image, question, answer, note; default: presets.json")
    max_new_tokens: int = opt(64, "tokens per answer at most")
    host: str = opt("127.0.0.1", "address to listen at; 0.0.0.0 lets other machines in")
    port: int = opt(7860, "port; 0 takes a free one")
    share: bool = opt(False, "let gradio open a public tunnel to this machine")
    open_browser: bool = opt(False, "open the page in the browser of this machine")
    threads: int | None = opt(None, "threads; null takes those of the process")

    def __post_init__(self) -> None:
        check_kinds(self)
        at_least("max_new_tokens", self.max_new_tokens, 1)
        at_least("port", self.port, 0, 65535)
        at_least("threads", self.threads, 1, MOST_THREADS)
        require(bool(self.host), "host is empty; 127.0.0.1 serves this machine only")
