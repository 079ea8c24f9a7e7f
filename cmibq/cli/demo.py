"""``cmibq demo``: everything on the small model that ships with cmibq."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cmibq.cli.options import read_options
from cmibq.cli.output import duration, say
from cmibq.demo.plan import DemoOptions

__all__ = ["run"]


def run(words: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(
        "demo",
        DemoOptions,
        words,
        about="Make data, quantise, measure and report; started again, it goes on where it was.",
        from_file=False,
    )
    if not options.done:
        from cmibq.demo.run import run_demo

        start = time.monotonic()
        run_demo(options.runs[0], say)
        say(f"the demo took {duration(time.monotonic() - start)}")
    return 0
