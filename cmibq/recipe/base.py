"""What recipes share: fields with a help text, and checks that say what is allowed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmibq.errors import ConfigError, nearest
from cmibq.recipe.places import local_path, placeholder

__all__ = [
    "MOST_SEED",
    "MOST_THREADS",
    "SCOPES",
    "VARIANTS",
    "Weights",
    "at_least",
    "choice",
    "opt",
    "parse_model_args",
    "parse_scope",
    "require",
]

MOST_SEED = 2**62 - 1  # twice this is what generators of random numbers take
MOST_THREADS = 1024  # thread libraries crash beyond
VARIANTS = ("default", "reference")
SCOPES = ("lm", "projector", "vision")
_DEVICES = ("auto", "cpu")


def opt(default: Any, text: str) -> Any:
    """Return a dataclass field with a default and a help text, as flags and YAML files show it."""
    return field(default=default, metadata={"help": text})


def require(ok: bool, message: str) -> None:
    """Raise `ConfigError` with the message unless `ok`."""
    if not ok:
        raise ConfigError(message)


def choice(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of a few words.

    Raises:
        ConfigError: naming the field, the value and the words.
    """
    require(value in allowed, f"{name} is {value!r}; allowed are {', '.join(allowed)}")


def at_least(name: str, value: int | None, lowest: int, most: int | None = None) -> None:
    """Refuse an integer outside ``lowest..most``; None passes.

    Raises:
        ConfigError: naming the field, the value and the range.
    """
    text = f"{name} is {value}; allowed are integers from {lowest}{f' to {most}' if most else ''}"
    require(value is None or lowest <= value <= (most or value), text)


def parse_model_args(text: str) -> Path:
    """Return the model folder of ``"pretrained=DIR"``.

    A name such as ``OpenGVLab/InternVL2-8B`` stands for that model in the Hugging Face cache of
    this machine, if it is there; nothing is downloaded.

    Args:
        text: ``key=value`` pairs separated by commas. Allowed are ``pretrained`` (needed) and
            ``device_map`` with the values auto and cpu, which both mean the CPU.

    Raises:
        ConfigError: ``pretrained`` is missing or a placeholder, or there is another key or value.

    Example:
        >>> str(parse_model_args("pretrained=models/llava,device_map=auto"))
        'models/llava'
    """
    require("=" in text, f"model_args is {text!r}; write pretrained=DIR, a local model folder")
    parts = re.split(r",\s*(?=\w+\s*=)", text.strip(" ,"))  # a folder may have a comma in its name
    pairs = dict(part.partition("=")[::2] for part in parts)
    pairs = {key.strip(): value.strip().strip("'\"") for key, value in pairs.items()}
    for key in pairs:
        hint = nearest(key, ("pretrained", "device_map"))
        require(key in ("pretrained", "device_map"), f"model_args has unknown key {key!r}; {hint}")
    choice("device_map of model_args", pairs.get("device_map", "auto"), _DEVICES)
    folder = pairs.get("pretrained", "")
    require(bool(folder), f"model_args is {text!r}; write pretrained=DIR, a local model folder")
    require(
        not placeholder(folder),
        f"model_args names {folder!r}, which stands for your own model folder; give --model_args"
        " pretrained=DIR",
    )
    return local_path(folder, "model")


@dataclass(frozen=True)
class Weights:
    """Checks shared by what makes and what measures a quantised model."""

    def check_bits(self, w_bit: int, w_group: int, a_bit: int) -> None:
        """Refuse bits and group sizes that no grid has; 16 bits mean float.

        Raises:
            ConfigError: naming the field, the value and what is allowed.
        """
        require(w_bit in (*range(1, 9), 16), f"w_bit is {w_bit}; allowed are 1..8 or 16 (float)")
        require(a_bit in (*range(2, 9), 16), f"a_bit is {a_bit}; allowed are 2..8 or 16 (float)")
        require(
            w_group in (-1, 0) or (w_group >= 8 and w_group % 8 == 0),
            f"w_group is {w_group}; allowed are multiples of 8, or -1 for one scale per row",
        )
        if a_bit < 16:
            require(
                w_bit != 16, f"a_bit is {a_bit} but w_bit is 16; set w_bit to 2..8 or a_bit to 16"
            )
            require(
                w_bit >= 2,
                f"w_bit is {w_bit} with a_bit {a_bit}: weights are then symmetric and need w_bit"
                " 2..8; raise w_bit or set a_bit to 16",
            )


def parse_scope(text: str) -> tuple[str, ...]:
    """Return the parts of a model that ``"lm,projector,vision"`` names, in that order.

    Raises:
        ConfigError: a part is unknown or none is named.

    Example:
        >>> parse_scope("vision, lm")
        ('lm', 'vision')
    """
    named = [part.strip() for part in text.split(",") if part.strip()]
    for part in named:
        hint = nearest(part, SCOPES)
        require(
            part in SCOPES,
            f"scope has unknown part {part!r}; allowed are {', '.join(SCOPES)} ({hint})",
        )
    require(bool(named), f"scope is {text!r}; name one or more of {', '.join(SCOPES)}")
    return tuple(part for part in SCOPES if part in named)
