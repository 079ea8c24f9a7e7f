"""The entry point: find the command, run it, turn errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Final

import cmibq
from cmibq.cli.output import complain, log_to_stderr, say
from cmibq.errors import CmibqError, ConfigError, nearest

__all__ = ["COMMANDS", "EXTRAS", "guarded", "main"]

COMMANDS: Final = {
    "quantize": ("quantize", "quantise a model, or a list of runs from a YAML file"),
    "plan": ("plan", "predict memory, disk and time of a run before it is started"),
    "eval": ("evaluate", "measure answers, size and speed of a model or a package"),
    "train": (
        "train",
        "train a CM-IBQ layer, or a composed vision tower: train cm-ibq, train calm",
    ),
    "data": ("data", "check a file of items, or make a task of lmms-eval of it"),
    "verify": ("verify", "compare a quantised model with the float model: verify DIR"),
    "export": ("export", "write a package as GGUF or compressed-tensors, and check it"),
    "report": ("report", "make a web page and a JSON file from the results of eval"),
    "demo": ("demo", "run everything on a small model that ships with cmibq"),
    "demo-data": ("demo_data", "write the demo's data set, models and YAML files"),
    "chat": ("chat", "talk with a model about a picture: chat --model-path DIR --image-file F"),
    "serve": ("serve", "show a composed model on a web page of this machine"),
    "doctor": ("doctor", "check this installation and name what would go wrong"),
}
"""Command -> (module in `cmibq.cli`, what it does)."""

EXTRAS: Final = {
    "jsonargparse": "cli",
    "yaml": "cli",
    "tqdm": "cli",
    "torch": "torch",
    "transformers": "hf",
    "safetensors": "hf",
    "PIL": "hf",
    "tokenizers": "hf",
    "matplotlib": "report",
    "jinja2": "report",
    "tensorboard": "track",
    "wandb": "track",
    "pyarrow": "data",
    "gguf": "gguf",
    "gradio": "serve",
    "sklearn": "demo",
    "skimage": "demo",
}
"""Top-level module -> the extra of cmibq that brings it."""

_GLOBAL: Final = {
    "--debug": "on an error, show the traceback",
    "--verbose": "say what is going on (on stderr)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program name; None takes those of the process.

    Returns:
        0; 1 for an error; 2 for a wrong flag, key or value; 3 for a result that failed its
        comparison with the float model; 130 after Ctrl-C.
    """
    return guarded(sys.argv[1:] if argv is None else argv, _dispatch)


def guarded(argv: Sequence[str], action: Callable[[list[str]], int]) -> int:
    """Do what a command does; errors become one line on stderr and an exit code.

    Args:
        argv: arguments; ``--debug`` and ``--verbose`` are taken out.
        action: what to do with the others; returns an exit code.

    Returns:
        The exit code; see `main`.
    """
    words = list(argv)
    debug = "--debug" in words
    log_to_stderr("--verbose" in words)
    words = [word for word in words if word not in _GLOBAL]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return action(words)
    except KeyboardInterrupt:
        complain("cmibq: interrupted; run the same command again to go on from here")
        return 130
    except BrokenPipeError:  # the reader, say head, has gone: nothing more to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        notes = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        complain(f"cmibq: error: {notes}{_explain(error)}")
        return 2 if isinstance(error, ConfigError) else 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        say(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        say(f"cmibq {cmibq.__version__}")
        return 0
    if words[0] not in COMMANDS:
        what = "option" if words[0].startswith("-") else "command"
        raise ConfigError(f"unknown {what} {words[0]!r}; {nearest(words[0], COMMANDS)}")
    module = importlib.import_module(f"cmibq.cli.{COMMANDS[words[0]][0]}")
    code: int = module.run(words[1:])
    return code


def _overview() -> str:
    width = max(map(len, (*COMMANDS, *_GLOBAL)))
    rows = [f"  {name.ljust(width)}  {about}" for name, (_, about) in COMMANDS.items()]
    flags = [f"  {name.ljust(width)}  {about}" for name, about in _GLOBAL.items()]
    return "\n".join(
        [
            "usage: cmibq COMMAND [options]",
            "",
            "Quantise vision-language models on CPUs.",
            "",
            "commands:",
            *rows,
            "",
            "with every command:",
            *flags,
            "",
            "'cmibq COMMAND --help' lists the options of a command.",
        ]
    )


def _explain(error: Exception) -> str:
    """Say in one line what went wrong; what is no error of ours also gets its type."""
    if isinstance(error, ImportError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        cure = f"; install it with: pip install 'cmibq[{extra}]'" if extra else ""
        return _flatten(f"{error}{cure}")
    if isinstance(error, CmibqError):
        return _flatten(str(error))
    if isinstance(error, MemoryError):
        return "out of memory; use fewer samples or a smaller batch"
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        return _flatten(f"{error.strerror or error}{place}")
    name = type(error).__name__
    return f"unexpected {name}: {_flatten(str(error))} (run again with --debug for the traceback)"


def _flatten(text: str) -> str:
    return " ".join(text.split())
