"""The picture of docs/calm-results.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.calm.tasks import COMPOSED, MAIN, ROWS
from cmibq.demo.tiles import KINDS

__all__ = ["draw"]

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
_NAMES = {
    "digit": "digit at a place",
    "sum": "sum of two digits",
    "colour": "hue at a place",
    "where": "place of a hue",
    "code": "digit + hue,\npair trained",
    "new": "digit + hue,\npair never shown",
}
_COLOURS = {
    "calm": "#0b6e99",
    "placed": "#12324a",
    "add": "#4fb0c6",
    "late": "#b5651d",
    "late_placed": "#d68a4a",
    "late_add": "#e8b98f",
    "concat": "#7d5ba6",
    "mof": "#c2a83e",
}
_GREYS = {"anchor": "#8a8f98", "augmenting": "#b9bec6", "copy": "#5d6d7e", "shuffled": "#d7dbe0"}


def draw(results: dict[str, Any], folder: Path = IMAGES) -> None:
    """Draw right answers by kind of question, a bar per row."""
    from matplotlib.figure import Figure

    rows = [row for row in (*MAIN[:1], *COMPOSED[1:], *MAIN[1:]) if row in results["rows"]]
    if not rows:
        return
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    ax = figure.subplots()
    width = 0.85 / len(rows)
    for number, row in enumerate(rows):
        told = results["rows"][row]["by_kind"]
        at = [i + (number - (len(rows) - 1) / 2) * width for i in range(len(KINDS))]
        colour = (_COLOURS | _GREYS)[row]
        label = ROWS[row].title if row != "add" else "composed (simple_add, n = 2)"
        ax.bar(at, [told[k] for k in KINDS], width, color=colour, label=label)
    ax.set_xticks(range(len(KINDS)), [_NAMES[k] for k in KINDS])
    ax.set_ylabel("answers that are right, %")
    ax.set_ylim(0, 100)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e3e6ea", lw=0.6)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "calm-kinds.png", dpi=130)
