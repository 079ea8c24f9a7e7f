"""Run a host's own script with CM-IBQ, or a composed vision tower, installed in it.

    python -m cmibq.launch --host llava --cmibq-config F.json -- REPO/llava/train/train.py ARGS
    python -m cmibq.launch --host tinyllava -- REPO/tinyllava/train/train.py ARGS

The script runs unmodified as ``__main__``, with the folder that holds its package on ``sys.path``;
``torchrun -m cmibq.launch ...`` works in the same way. Options that are not known here go to the
script.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from cmibq.errors import CmibqError, ConfigError

__all__ = ["guarded", "main"]

HOSTS = {"llava": "cmibq.integrations.llava", "tinyllava": "cmibq.integrations.tinyllava"}
"""Name of a host, which is that of its package -> module with `install`, and maybe `translate`."""


def _config(text: str | None) -> dict[str, Any] | None:
    """Return the JSON of a file, or of a string that begins with a brace."""
    if not text:
        return None
    try:
        fields = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text("utf8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--cmibq-config {text}: {error}; give a JSON file with the host's options"
        ) from error
    if not isinstance(fields, dict):
        raise ConfigError(f"--cmibq-config {text}: it holds no object; give fields by name")
    return fields


def _root(script: Path, package: str) -> Path:
    """Return the folder that holds the host's package, above the script.

    Raises:
        ConfigError: the script is not there, or in no such package.
    """
    if not script.is_file():
        raise ConfigError(f"{script} is no file; give the host's script after --")
    for parent in script.resolve().parents:
        if parent.name == package:
            return parent.parent
    raise ConfigError(f"{script} is not inside a package {package!r}; give the host's own script")


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser("python -m cmibq.launch", description=__doc__.split("\n")[0])
    parser.add_argument("--host", required=True, choices=sorted(HOSTS))
    parser.add_argument("--cmibq-config", default=os.environ.get("CMIBQ_CONFIG"))
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    cut = argv.index("--") if "--" in argv else len(argv)
    told, unknown = parser.parse_known_args(argv[:cut])
    rest = argv[cut + 1 :]
    if not rest:
        parser.error("give the host's script and its arguments after --")
    return told, [*rest, *unknown]


def main(argv: list[str] | None = None) -> None:
    """Run the script that the command line names.

    Raises:
        ConfigError: an argument is wrong.
    """
    told, rest = _parse(sys.argv[1:] if argv is None else argv)
    script = Path(rest[0])
    root = _root(script, told.host)
    sys.path.insert(0, str(root))
    host = importlib.import_module(HOSTS[told.host])
    host.install(_config(told.cmibq_config))
    translate = getattr(host, "translate", list)
    sys.argv = [str(script), *translate(rest[1:])]
    runpy.run_path(str(script), run_name="__main__")


def guarded(argv: list[str] | None = None) -> int:
    """Do what `main` does; an error of cmibq becomes one line on stderr, as in its commands.

    Errors of the host's script keep their traceback, and with ``--debug`` all do.

    Returns:
        0; 2 for a wrong argument or field; 1 for another error of cmibq.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        main(words)
    except CmibqError as error:
        if "--debug" in words:
            traceback.print_exc()
        sys.stderr.write(f"cmibq: error: {' '.join(str(error).split())}\n")
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(guarded())
