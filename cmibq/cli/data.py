"""``cmibq data``: is a file of items usable, what is in it; make a task of lmms-eval of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cmibq.cli.options import read_options
from cmibq.cli.output import say
from cmibq.errors import ConfigError, nearest
from cmibq.recipe.base import at_least, opt

if TYPE_CHECKING:
    from cmibq.data.survey import Survey

__all__ = ["DataCheck", "DataTask", "run"]

_WIDTH = 100
_USAGE = """usage: cmibq data check FILE [options]
       cmibq data task FILE --out DIR [options]

check  look at every record, image and length; exit with 1 where something cannot be used
task   make a task of lmms-eval of a file of questions

'cmibq data check --help' lists the options of an action."""


@dataclass(frozen=True)
class DataCheck:
    """What ``cmibq data check`` looks at.

    Raises:
        ConfigError: no file is named.
    """

    file: str = opt("", "items: .json, .jsonl or .parquet; texts also .txt and .jsonl.zst")
    image_folder: str = opt("", "folder that image paths start from; default: that of the file")
    model: str = opt("", "model folder: lengths in its tokens, and what exceeds its context")
    samples: int = opt(3, "items to show")
    problems: int = opt(20, "problems to show")

    def __post_init__(self) -> None:
        if not self.file:
            raise ConfigError("name a file: cmibq data check FILE")
        at_least("samples", self.samples, 0)
        at_least("problems", self.problems, 0)


@dataclass(frozen=True)
class DataTask:
    """What ``cmibq data task`` writes.

    Raises:
        ConfigError: the file or the folder is not named.
    """

    file: str = opt("", "questions with answers: .json, .jsonl or .parquet")
    out: str = opt("", "folder of the task, for --include_path")
    name: str = opt("local", "name of the task, for --tasks")
    metric: str = opt("exact_match", "exact_match or vqa")
    image_folder: str = opt("", "folder that image paths start from; default: that of the file")
    max_new_tokens: int = opt(16, "most tokens of an answer")

    def __post_init__(self) -> None:
        if not self.file or not self.out:
            raise ConfigError("name a file and a folder: cmibq data task FILE --out DIR")
        at_least("max_new_tokens", self.max_new_tokens, 1)


def _with_file(words: Sequence[str]) -> list[str]:
    """Return the flags of ``FILE --flags`` or ``--flags FILE``."""
    rest, named = list(words), list[str]()
    alone = ("--json", "--help", "-h")
    for place, word in enumerate(rest):
        before = rest[place - 1] if place else ""
        is_value = before.startswith("--") and "=" not in before and before not in alone
        if not word.startswith("-") and not is_value:
            named = ["--file", rest.pop(place)]
            break
    return named + rest


def run(words: Sequence[str]) -> int:
    """Run the command; returns 1 if something cannot be used."""
    if not words or words[0] in ("-h", "--help"):
        say(_USAGE)
        return 0
    if words[0] not in _ACTIONS:
        raise ConfigError(f"unknown action {words[0]!r}; {nearest(words[0], _ACTIONS)}")
    return _ACTIONS[words[0]](_with_file(words[1:]))


def _check(words: Sequence[str]) -> int:
    options = read_options(
        "data check",
        DataCheck,
        words,
        about="Check a file of items: every record, every image, every length.",
        switches={"json": "print one JSON object instead of tables"},
        from_file=False,
        prog="cmibq data check FILE",
    )
    if options.done:
        return 0
    asked = options.runs[0]
    found = _look(asked)
    if "json" in options.switches:
        shown = [_shown(s) for s in found.samples[: asked.samples]]
        say(json.dumps(found.to_json() | {"samples": shown}, ensure_ascii=False, indent=1))
    else:
        say("\n".join(_lines(found, asked)))
    return 1 if found.problems else 0


def _task(words: Sequence[str]) -> int:
    options = read_options(
        "data task",
        DataTask,
        words,
        about="Make a task of lmms-eval of a file of questions; everything stays local.",
        from_file=False,
        prog="cmibq data task FILE",
    )
    if options.done:
        return 0
    from cmibq.eval.local_task import write_task

    asked = options.runs[0]
    count = write_task(
        asked.file,
        asked.out,
        name=asked.name,
        metric=asked.metric,
        image_folder=asked.image_folder,
        max_new_tokens=asked.max_new_tokens,
    )
    say(f"{asked.out}: {count} questions; measure with --tasks {asked.name} --include_path DIR")
    return 0


_ACTIONS = {"check": _check, "task": _task}


def _look(asked: DataCheck) -> Survey:
    from cmibq.data import context_length
    from cmibq.data.survey import survey

    if not asked.model:
        return survey(asked.file, asked.image_folder)
    from cmibq.models import load_processor, read_family
    from cmibq.recipe.places import local_path

    folder = local_path(asked.model, "model")
    read_family(folder)
    return survey(
        asked.file,
        asked.image_folder,
        processor=load_processor(folder),
        context=context_length(folder),
    )


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _WIDTH else flat[: _WIDTH - 3] + "..."


def _shown(sample: Any) -> dict[str, Any]:
    """Return an item for people: where it stands, its images and turns."""
    turns = [f"{m.role}: {_cut(m.text)}" for m in sample.messages]
    return {
        "where": sample.where,
        "images": [str(path) for path in sample.images],
        "turns": turns or [_cut(sample.raw.get("text", ""))],
    }


def _lines(found: Survey, asked: DataCheck) -> list[str]:
    facts = found.to_json()
    counts = ", ".join(f"{n}: {c}" for n, c in facts["images_per_sample"].items())
    sizes = [f"{size} ({count})" for size, count in facts["sizes"].items()]
    few = ", ".join(sizes[:5]) + (f" and {len(sizes) - 5} more" if len(sizes) > 5 else "")
    rows = [
        ("file", facts["file"]),
        ("use as", f"calib_data {facts['kind']}"),
        ("records", str(facts["records"])),
        ("usable", str(facts["usable"])),
        ("images", f"{facts['images']} files; records by number of images: {counts or 'none'}"),
        ("sizes", few or "none"),
        *((name, _numbers(some)) for name, some in facts["lengths"].items()),
        ("problems", str(len(found.problems))),
    ]
    lines = [f"{name:14} {text}" for name, text in rows]
    for sample in found.samples[: asked.samples]:
        one = _shown(sample)
        lines += ["", one["where"], *(f"  image {path}" for path in one["images"])]
        lines += [f"  {turn}" for turn in one["turns"]]
    if found.problems:
        shown = found.problems[: asked.problems]
        lines += ["", "problems:", *(f"  {text}" for text in shown)]
        hidden = len(found.problems) - len(shown)
        lines += [f"  and {hidden} more; --problems shows them"] if hidden else []
    return lines


def _numbers(some: dict[str, float]) -> str:
    if not some:
        return "none"
    return f"{some['least']} to {some['most']}, median {some['median']:g}, sum {some['sum']}"
