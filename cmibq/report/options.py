"""What ``cmibq report`` can be asked."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ReportOptions"]


@dataclass(frozen=True)
class ReportOptions:
    """Where to read results and write the report, and what to call things."""

    runs: str = field(metadata={"help": "folder of the result folders that cmibq eval wrote"})
    out: str = field(default="report", metadata={"help": "folder for report.json and report.html"})
    main: str = field(
        default="",
        metadata={
            "help": "model of the first table, by folder name; default: planted, or the only"
        },
    )
    oracle: str = field(
        default="",
        metadata={"help": "model without outliers, whose RTN runs are the oracle; default: plain"},
    )
    title: str = field(default="Quantisation report", metadata={"help": "title of the page"})
    rerun: str = field(default="", metadata={"help": "command that makes all this again, to show"})
