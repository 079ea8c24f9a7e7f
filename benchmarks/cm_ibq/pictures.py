"""The picture of docs/cm-ibq-results.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cm_ibq.tasks import IMAGE_ROWS, ROWS

__all__ = ["draw", "title"]

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
_PICTURE = {"jpeg": "JPEG of the picture", "webp": "WebP of the picture"}
_OURS = {"ours": "#0b6e99", "task": "#7bb8d1", "flat": "#4b9e5f"}
_OTHERS = ("#8a8f98", "#b5651d", "#7d5ba6", "#c2a83e", "#a23b4f", "#5d6d7e", "#c77d99", "#3d8b80")


def title(name: str) -> str:
    """Return what a curve is called."""
    row = name.removesuffix(", fixed")
    if row in _PICTURE:
        return _PICTURE[row]
    return ROWS[row].title + (", fixed length" if name != row else "")


def draw(results: dict[str, Any], folder: Path = IMAGES) -> None:
    """Draw accuracy over bytes, a curve per row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    ax = figure.subplots()
    shown = [n for n in results["rows"] if not n.endswith(", fixed")]
    plain = iter(_OTHERS * 3)
    for name in shown:
        points = sorted(results["rows"][name], key=lambda p: p["bytes"])
        colour = _OURS.get(name) or next(plain)
        style = {"lw": 2.2, "ms": 6} if name in _OURS else {"lw": 1.0, "ms": 4}
        line = "o-" if name in _OURS else "s:" if name in IMAGE_ROWS else "o--"
        x, y = [p["bytes"] for p in points], [100 * p["accuracy"] for p in points]
        error = [200 * p["gain_stderr"] for p in points]
        ax.errorbar(x, y, yerr=error, fmt=line, color=colour, label=title(name), **style)
    best = 100 * results["float"]["accuracy"]
    ax.axhline(best, color="#444", lw=0.8)
    ax.axhline(best - 1, color="#444", lw=0.8, ls=":")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylim(best - 10, best + 0.7)
    ax.set_xlabel("bytes of a picture (of a picture and a question, where it is known)")
    ax.set_ylabel("answers that are right, %")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e3e6ea", lw=0.6)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "cm-ibq-rates.png", dpi=130)
