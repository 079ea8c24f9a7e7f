"""``cmibq report``: results of eval as a web page and a JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmibq.cli.options import read_options
from cmibq.cli.output import say
from cmibq.report.options import ReportOptions

__all__ = ["run"]


def run(words: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(
        "report",
        ReportOptions,
        words,
        about="Make report.html (opens offline) and report.json from the results of eval.",
        from_file=False,
    )
    if not options.done:
        from cmibq.report.build import write_report
        from cmibq.report.text import format_report

        (asked,) = options.runs
        say(format_report(write_report(asked)))
        say(f"wrote {Path(asked.out, 'report.html')} and report.json")
    return 0
