"""The page of one training: numbers above, figures below, one file that opens offline."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmibq.errors import DataError
from cmibq.fileio import read_json, write_text
from cmibq.report.style import style

__all__ = ["Draw", "Figure", "mean_of_last", "of_stage", "read_run", "svg", "write_page"]

Draw = Callable[[], Any]
Figure = tuple[str, str, Draw]
"""Title, explanation, and what draws it."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2430; max-width: 960px; margin: 2em auto;
  padding: 0 1em }}
h1 {{ font-size: 1.5em }} h2 {{ font-size: 1.1em; margin: 2em 0 .2em }}
svg {{ max-width: 100%; height: auto }} p {{ max-width: 46em }}
table {{ border-collapse: collapse }} td {{ padding: .15em 1.2em .15em 0; vertical-align: top }}
td + td {{ text-align: right; font-variant-numeric: tabular-nums }}
</style></head><body>
<h1>{title}</h1>
{table}
{figures}
</body></html>
"""


def svg(draw: Draw) -> str:
    """Return a figure as SVG to put into a page."""
    buffer = io.StringIO()
    with style():
        ax = draw()
        ax.figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", text, count=1, flags=re.DOTALL)


def of_stage(records: Sequence[Mapping[str, Any]], stage: int) -> list[Mapping[str, Any]]:
    """Return the records of a stage."""
    return [r for r in records if r["stage"] == stage]


def mean_of_last(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean of the last tenth of the records."""
    told = [r[key] for r in records if isinstance(r.get(key), float)]
    last = told[-max(len(told) // 10, 1) :]
    return sum(last) / len(last) if last else None


def read_run(folder: Path) -> Any:
    """Return what ``run.json`` says.

    Raises:
        DataError: there is no training in the folder.
    """
    if not (folder / "run.json").exists():
        raise DataError(f"{folder} has no run.json; give the output_path of cmibq train")
    return read_json(folder / "run.json")


def write_page(
    folder: Path, title: str, rows: Sequence[tuple[str, str]], figures: Sequence[Figure]
) -> Path:
    """Write ``report.html`` into a folder.

    Args:
        folder: of the training.
        title: of the page.
        rows: name and number, above the figures.
        figures: below.
    """
    told = [f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows]
    drawn = [
        f"<h2>{html.escape(name)}</h2><p>{html.escape(text)}</p>{svg(draw)}"
        for name, text, draw in figures
    ]
    table = f"<table>{''.join(told)}</table>"
    page = _PAGE.format(title=html.escape(title), table=table, figures="\n".join(drawn))
    path = folder / "report.html"
    write_text(path, page)
    return path
