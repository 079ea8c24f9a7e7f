"""The whole demo: public commands one after the other, each in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cmibq
from cmibq.demo.heap import HEAP_SETTINGS
from cmibq.demo.plan import DemoOptions, eval_runs, quantize_runs, results_folder
from cmibq.errors import CmibqError
from cmibq.fileio import read_json, sha256_bytes, write_json

__all__ = ["Stage", "run_demo", "stages"]

_DIE_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Stage:
    """One command of the demo and the files that are there when it has finished."""

    words: tuple[str, ...]
    makes: tuple[Path, ...]


def stages(options: DemoOptions) -> list[Stage]:
    """Return the commands of the demo, in order."""
    out = Path(options.out)
    work = out / ".work"
    flags = [f"--{name}" for name in ("train", "quick") if getattr(options, name)]
    data = ["demo-data", "--out", str(work), "--split", options.split, *flags]
    packages = [Path(run["output_path"]) for run in quantize_runs(work, quick=options.quick)]
    which: dict[str, Any] = {"split": options.split, "quick": options.quick}
    results = [Path(run["output_path"]) for run in eval_runs(work, **which)]
    again = ["cmibq", "demo", "--out", str(out), "--split", options.split, *flags]
    title = ["--title", "cmibq demo: four methods on a small model with planted outliers"]
    report = ["report", "--runs", str(results_folder(work, **which)), "--out", str(out), *title]
    return [
        Stage(tuple(data), (work / "quantize.yaml", work / "eval.yaml")),
        Stage(
            ("quantize", "--config", str(work / "quantize.yaml")),
            tuple(package / "manifest.json" for package in packages),
        ),
        Stage(
            ("eval", "--config", str(work / "eval.yaml")),
            tuple(result / "result.json" for result in results),
        ),
        Stage((*report, "--rerun", " ".join(again)), ()),
    ]


def run_demo(options: DemoOptions, say: Callable[[str], None]) -> None:
    """Run every stage that is not finished; the last one, the report, always.

    Args:
        options: where to write and how much to do.
        say: is given each command before it runs.

    Raises:
        CmibqError: a command failed; it has said why.
    """
    journal = Path(options.out) / ".work" / "stages.json"
    done: dict[str, str] = read_json(journal) if journal.exists() else {}
    stamp = cmibq.__version__
    for number, stage in enumerate(stages(options), 1):
        key = stage.words[0]
        stamp = sha256_bytes(json.dumps([stamp, *stage.words]).encode())
        shown = " ".join(word if " " not in word else f"'{word}'" for word in stage.words)
        say(f"\n[{number}/4] $ cmibq {shown}")
        if stage.makes and done.get(key) == stamp and all(p.exists() for p in stage.makes):
            say("already done")
            continue
        code = _call(stage.words)
        if code:
            raise CmibqError(
                f"'cmibq {key}' failed with exit code {code}, see above; 'cmibq demo' goes on "
                "from there when you run it again"
            )
        if stage.makes:
            done[key] = stamp
            write_json(journal, done)


def _environment() -> dict[str, str]:
    """Return the environment of the commands: this very cmibq, and a heap that keeps memory."""
    here = str(Path(cmibq.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    return {**HEAP_SETTINGS, **os.environ, "PYTHONPATH": paths}


def _call(words: tuple[str, ...]) -> int:
    """Run one command; if this process is killed, so is the command."""
    settings: Mapping[str, Any] = {}
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        settings = {"preexec_fn": lambda: prctl(_DIE_WITH_PARENT, signal.SIGTERM)}
    command = [sys.executable, "-P", "-m", "cmibq", *words]
    with subprocess.Popen(command, env=_environment(), **settings) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the command got it too and cleans up
            process.wait()
            raise
