"""``cmibq plan``: what the runs of `quantize` will take, before they are started."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cmibq.cli.options import read_options
from cmibq.cli.output import duration, say
from cmibq.cli.quantize import CONFIGS
from cmibq.cli.runs import title
from cmibq.recipe import QuantRecipe, format_size

__all__ = ["run"]


def run(words: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(
        "plan",
        QuantRecipe,
        words,
        about="Predict memory, disk and time of a quantisation run; nothing is written.",
        switches={
            "json": "print JSON",
            "no-time": "leave the time out, which takes a short search",
        },
        shipped=CONFIGS,
    )
    if options.done:
        return 0
    from cmibq.ptq.plan import plan

    made = []
    for recipe in options.runs:
        found = plan(recipe, measure="no-time" not in options.switches)
        made.append({"name": title(recipe), **found.to_json()})
        if "json" not in options.switches:
            say(_table(made[-1]))
    if "json" in options.switches:
        say(json.dumps(made if len(made) > 1 else made[0], indent=1))
    return 0


def _rows(title: str, total: str, parts: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(title, total), *((f"  {name}", text) for name, text in parts.items())]


def _table(found: Mapping[str, Any]) -> str:
    """Return the plan of a run for people."""
    sizes = {name: format_size(size) for name, size in found["memory"].items()}
    rows = _rows("peak memory", format_size(found["peak_bytes"]), sizes)
    rows += [("least max_memory", format_size(found["smallest_max_memory"]))]
    disk = {name: format_size(size) for name, size in found["disk"].items()}
    rows += _rows("result on disk", format_size(found["disk_bytes"]), disk)
    rows += [("files meanwhile", format_size(found["scratch_bytes"]))]
    if found["seconds"]:
        times = {name: duration(s) for name, s in found["seconds"].items() if s >= 0.05}
        rows += _rows("time", duration(found["total_seconds"]), times)
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {text.rjust(12)}" for name, text in rows]
    head = f"{found['name']}: {found['tokens']} calibration tokens"
    return "\n".join([head, *lines])
