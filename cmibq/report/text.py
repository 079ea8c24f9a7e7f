"""The table of a report as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmibq.report.style import name

__all__ = ["format_report", "layout"]

_HEAD = ("setting", "method", "accuracy %", "gap closed %", "bits/weight", "size", "tokens/s")


def layout(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lay out a table; the first row is the head, the first `left` columns are flush left.

    Example:
        >>> print(layout([("method", "bits"), ("awq", "4"), ("smoothquant", "16")]))
        method       bits
        -----------  ----
        awq             4
        smoothquant    16
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        return "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in pairs).rstrip()

    head, *body = rows
    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, body)])


def _cells(row: Mapping[str, Any], repeated: bool) -> tuple[str, ...]:
    exact, closed = row.get("reload_exact"), ""
    if row.get("gap_closed") is not None:
        low, high = row["gap_closed_ci"]
        closed = f"{100 * row['gap_closed']:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
    return (
        "" if repeated else str(row["setting"]),
        name(row["method"]),
        f"{100 * row['accuracy']:.2f} +- {100 * row['stderr']:.2f}",
        closed,
        f"{row['bits_per_weight']:.2f}" if row.get("bits_per_weight") else "",
        f"{row['bytes'] / 1e6:.2f} MB" if row.get("bytes") else "",
        f"{row['tokens_per_s']:.0f}" if row.get("tokens_per_s") else "",
        "" if exact is None else "exact" if exact else "NOT EXACT",
    )


def format_report(report: Mapping[str, Any]) -> str:
    """Return the rows of ``report.json`` as a table.

    Args:
        report: what ``report.json`` holds.

    Returns:
        Lines without a final line break.
    """
    cells: list[Sequence[str]] = [(*_HEAD, "reload")]
    before = None
    for row in report["rows"]:
        cells.append(_cells(row, row["setting"] == before))
        before = row["setting"]
    return layout(cells, left=2)
