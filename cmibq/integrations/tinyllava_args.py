"""The command line of TinyLLaVA's train.py, with CALM's own options and the spelling of its README.

The host takes ``--vision_tower calm:ANCHOR --vision_tower2 calm:AUGMENTING`` and no flag that it
does not know. Flags named like fields of `CALMConfig` are taken off here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from cmibq.errors import ConfigError
from cmibq.integrations.tinyllava_fork import read_config
from cmibq.integrations.tinyllava_record import KEY
from cmibq.recipe.calm import CALMConfig

__all__ = ["take", "translate"]

_log = logging.getLogger(__name__)
_HOSTS_OWN = ("gradient_checkpointing", "select_layer", "anchor_model", "augmenting_model")
_LLM = "llm_model_name_or_path"


def _value(name: str, kind: str, text: str) -> Any:
    """Return the value of a flag in the type of its field."""
    try:
        if kind.startswith("tuple"):
            return tuple(int(part) for part in text.split(",") if part)
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return {"int": int, "float": float}.get(kind, str)(text)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"--{name} is {text!r}; give {kind}") from error


def take(args: list[str], name: str) -> str | None:
    """Take a flag off a command line, wherever it stands; return its value, the last one.

    Example:
        >>> args = ["--a", "1", "--b=2"]
        >>> take(args, "b"), take(args, "c"), args
        ('2', None, ['--a', '1'])
    """
    found, left, words = None, list[str](), iter(args)
    for word in words:
        if word.startswith(f"--{name}="):
            found = word.partition("=")[2]
        elif word == f"--{name}":
            found = next(words, None)
            if found is None:
                raise ConfigError(f"--{name} has no value")
        else:
            left.append(word)
    args[:] = left
    return found


def _plain(name: str) -> str:
    """Return a tower's name without ``calm:``."""
    return name.removeprefix(f"{KEY}:")


def _llm(args: list[str]) -> None:
    """Say where the language model comes from, where the README's spelling leaves no flag for it.

    It is ``--llm_model_name_or_path``; else that of the checkpoint that training starts from; else
    the host's default, TinyLlama-1.1B-Chat.
    """
    name, start = take(args, _LLM), take(args, "pretrained_model_path")
    if start is not None:
        args += ["--pretrained_model_path", start]
        name = name or read_config(start).get(_LLM)
    if name:
        args += ["--model_name_or_path", str(name)]
    _log.info("language model: %s", name or "the host's default; choose with --" + _LLM)


def _towers(args: list[str], tower: str) -> None:
    """Put both towers where the host reads them.

    Raises:
        ConfigError: one is missing.
    """
    second = take(args, "model_name_or_path2")
    anchor, augmenting = take(args, "anchor_model"), take(args, "augmenting_model")
    augmenting = augmenting or second or take(args, "vision_tower2")
    if tower != KEY:
        anchor = tower
    elif anchor is None:  # the README's spelling: the towers stand where the LLM belongs
        anchor = take(args, "model_name_or_path")
        _llm(args)
    for which, name, flag in (
        ("anchor", anchor, f"--vision_tower {KEY}:ANCHOR"),
        ("augmenting", augmenting, f"--vision_tower2 {KEY}:AUGMENTING"),
    ):
        if not name or not _plain(name):
            raise ConfigError(f"--vision_tower {tower} has no {which} tower; give {flag}")
    args += ["--vision_tower", f"{KEY}:{_plain(str(anchor))}"]
    args += ["--vision_tower2", f"{KEY}:{_plain(str(augmenting))}"]


def translate(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the arguments that the host understands, and CALM's own options.

    Args:
        args: of train.py. Those of other scripts, which name no composed tower, are left alone.

    Raises:
        ConfigError: a tower is missing, or an option has a wrong value.

    Example:
        >>> words = "--vision_tower calm --model_name_or_path clip --model_name_or_path2 dino"
        >>> left, calm = translate([*words.split(), "--composition_layers", "2"])
        >>> left, calm
        (['--vision_tower', 'calm:clip', '--vision_tower2', 'calm:dino'], {'composition_layers': 2})
    """
    left = list(args)
    tower = take(left, "vision_tower")
    if tower is None or tower.partition(":")[0] != KEY:
        return list(args), {}
    told = {}
    for field in fields(CALMConfig):
        text = None if field.name in _HOSTS_OWN else take(left, field.name)
        if text is not None:
            told[field.name] = _value(field.name, str(field.type), text)
    _towers(left, tower)
    return left, told
