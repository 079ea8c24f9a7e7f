"""``cmibq demo-data``: the demo's data set, model folders and YAML files."""

from __future__ import annotations

from collections.abc import Sequence

from cmibq.cli.options import read_options
from cmibq.cli.output import say
from cmibq.demo.plan import DataOptions

__all__ = ["run"]


def run(words: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(
        "demo-data",
        DataOptions,
        words,
        about="Write a LLaVA-format data set of real digits, two models and lists of runs.",
        from_file=False,
    )
    if not options.done:
        from cmibq.demo.prepare import prepare

        made = prepare(options.runs[0])
        say(f"models: {', '.join(made['models'])}")
        say(f"next: cmibq quantize --config {made['quantize']}")
        say(f"then: cmibq eval --config {made['eval']}")
    return 0
