"""``cmibq doctor``: what is installed, what this machine offers, and what would go wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from cmibq.cli import checks
from cmibq.cli.checks import Check
from cmibq.cli.output import say
from cmibq.errors import ConfigError, nearest

__all__ = ["examine", "run"]


def examine() -> list[Check]:
    """Run all checks, in the order they are shown.

    Returns:
        One entry per thing looked at; state ``ok``, ``warn`` or ``fail``, the last two with a cure.
    """
    return [found for check in checks.ALL for found in check()]


def run(words: Sequence[str]) -> int:
    """Run the command; 1 if something is broken. Needs nothing that an extra brings."""
    about = "Check this installation; exit code 1 if something is broken."
    parser = argparse.ArgumentParser("cmibq doctor", description=about, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options, unknown = parser.parse_known_args(words)
    if unknown:
        raise ConfigError(f"unknown flag {unknown[0]!r}; {nearest(unknown[0], ['--json'])}")
    found = examine()
    broken = any(check.state == "fail" for check in found)
    if options.json:
        say(json.dumps({"ok": not broken, "checks": [asdict(c) for c in found]}, indent=1))
    else:
        say(_text(found))
    return int(broken)


def _text(found: Sequence[Check]) -> str:
    marks = {"ok": "  ok  ", "warn": " warn ", "fail": " FAIL "}
    width = max(len(check.name) for check in found)
    lines = []
    for check in found:
        lines.append(f"{marks[check.state]} {check.name.ljust(width)}  {check.value}")
        if check.cure:
            lines.append(f"       {' ' * width}  -> {check.cure}")
    count = {state: sum(check.state == state for check in found) for state in marks}
    if count["fail"]:
        verdict = f"{count['fail']} broken: follow the arrows"
    elif count["warn"]:
        verdict = f"everything needed works; {count['warn']} to look at"
    else:
        verdict = "all good"
    return "\n".join([*lines, "", verdict])
