"""The figures: each takes rows of the report and returns the Axes it drew on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmibq.report.analysis import METHODS
from cmibq.report.style import GREY, INK, colour, marker, name, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_accuracy", "plot_excess", "plot_gap_closed", "plot_pareto"]

Rows = Sequence[Mapping[str, Any]]


def _axes(ax: Axes | None, width: float = 7.2, height: float = 3.4) -> Axes:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").subplots()


def _settings(rows: Rows) -> list[str]:
    return list(dict.fromkeys(r["setting"] for r in rows if r["method"] != "float"))


def _methods(rows: Rows, *, without: Sequence[str] = ("float", "oracle")) -> list[str]:
    found = dict.fromkeys(r["method"] for r in rows if r["method"] not in without)
    known = [m for m in METHODS if m in found]
    return known + sorted(set(found) - set(known))


def _dodged(
    ax: Axes, rows: Rows, key: str, methods: Sequence[str], scale: float = 1.0
) -> list[str]:
    """Draw one marker with its interval per method and setting, side by side."""
    settings = _settings(rows)
    step = 0.62 / max(len(methods), 1)
    for place, method in enumerate(methods):
        mine = [r for r in rows if r["method"] == method and r.get(key) is not None]
        x = [settings.index(r["setting"]) + (place - (len(methods) - 1) / 2) * step for r in mine]
        for at, row in zip(x, mine, strict=True):
            low, high = (scale * v for v in row[f"{key}_ci"])
            ax.plot([at, at], [low, high], color=colour(method), lw=1.6, solid_capstyle="butt")
        y = [scale * r[key] for r in mine]
        ax.plot(x, y, ls="", color=colour(method), marker=marker(method), ms=7, label=name(method))
    ax.set_xticks(range(len(settings)), settings)
    ax.set_xlim(-0.5, len(settings) - 0.5)
    return settings


def _legend(ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=len(labels),
            columnspacing=1.4,
            handletextpad=0.3,
            borderaxespad=0.1,
        )


def plot_accuracy(rows: Rows, ax: Axes | None = None) -> Axes:
    """Draw accuracy by setting and method, with the float model and the oracle as lines.

    Args:
        rows: rows of ``report.json``.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    ax = tidy(_axes(ax))
    settings = _dodged(ax, rows, "accuracy", _methods(rows), 100.0)
    for row in rows:
        if row["method"] == "oracle":
            at = settings.index(row["setting"])
            y = 100 * row["accuracy"]
            ax.plot([at - 0.4, at + 0.4], [y, y], color=GREY, lw=2.2, zorder=1)
    if any(r["method"] == "oracle" for r in rows):
        ax.plot([], [], color=GREY, lw=2.2, label=name("oracle"))
    for row in rows:
        if row["method"] == "float":
            y = 100 * row["accuracy"]
            ax.axhline(y, color=INK, lw=1.1, ls=(0, (5, 3)), zorder=1, label=f"float {y:.1f} %")
    ax.set_ylabel("accuracy, %")
    _legend(ax)
    return ax


def plot_gap_closed(rows: Rows, ax: Axes | None = None, *, key: str = "gap_closed") -> Axes:
    """Draw which share of the gap from RTN to the oracle each method closes.

    Args:
        rows: rows of ``report.json``.
        ax: axes to draw on; None makes a figure.
        key: ``"gap_closed"`` (accuracy) or ``"gap_closed_logprob"``.

    Returns:
        The axes.
    """
    ax = tidy(_axes(ax))
    shown = [r for r in rows if r.get(key) is not None or r["method"] == "oracle"]
    _dodged(ax, shown, key, _methods(shown), 100.0)
    for y, text in ((0, "RTN"), (100, "oracle")):
        ax.axhline(y, color=GREY, lw=1.4, zorder=1)
        ax.annotate(
            text,
            (1.0, y),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=GREY,
        )
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -60), min(max(high, 112), 190))
    ax.set_ylabel("share of the gap closed, %")
    _legend(ax)
    return ax


def plot_excess(rows: Rows, ax: Axes | None = None) -> Axes:
    """Draw how much less likely the right answers are than under the float model.

    Args:
        rows: rows of ``report.json``.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes; linear below a thousandth of a nat, logarithmic above.
    """
    ax = tidy(_axes(ax))
    _dodged(ax, rows, "excess", _methods(rows, without=("float",)))
    ax.axhline(0, color=INK, lw=1.1, ls=(0, (5, 3)), zorder=1)
    values = [v for r in rows if r["method"] != "float" for v in r.get("excess_ci", ())]
    low, high = min(values, default=0), max(values, default=1)
    threshold = 10.0 ** math.floor(math.log10(max(high, 1e-4) / 100))
    ax.set_yscale("symlog", linthresh=threshold, linscale=0.6)
    ax.set_ylim(min(-0.3 * threshold, 1.3 * low), 1.6 * high)
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}".replace("-", "\N{MINUS SIGN}"))
    ax.set_ylabel("excess loss, nats per answer")
    _legend(ax)
    return ax


def plot_pareto(rows: Rows, ax: Axes | None = None) -> Axes:
    """Draw accuracy against bytes on disk; hollow markers have quantised activations.

    The float model is a line (its size is in the legend), so that the small ones have room.

    Args:
        rows: rows of ``report.json``.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    ax = tidy(_axes(ax), grid="both")
    sized = [r for r in rows if r.get("bytes")]
    unit, factor = _unit(max((r["bytes"] for r in sized), default=1))
    for method in _methods(sized, without=("float", "oracle")):
        mine = [r for r in sized if r["method"] == method]
        plain = sorted((r for r in mine if r["a_bit"] == 16), key=lambda r: r["bytes"])
        acts = [r for r in mine if r["a_bit"] < 16]
        kind: dict[str, Any] = {"color": colour(method), "marker": marker(method), "ms": 7}
        xy = [[r["bytes"] / factor for r in plain], [100 * r["accuracy"] for r in plain]]
        ax.plot(*xy, lw=1.3, label=name(method), **kind)
        xy = [[r["bytes"] / factor for r in acts], [100 * r["accuracy"] for r in acts]]
        ax.plot(*xy, ls="", mfc="white", mew=1.5, **kind)
    _name_sizes(ax, sized, factor)
    for row in sized:
        if row["method"] == "float":
            y, text = 100 * row["accuracy"], f"float: {row['bytes'] / factor:.2f} {unit}"
            ax.axhline(y, color=INK, lw=1.1, ls=(0, (5, 3)), zorder=1, label=text)
    ax.set_xlabel(f"size on disk, {unit}")
    ax.set_ylabel("accuracy, %")
    _legend(ax)
    return ax


def _unit(largest: float) -> tuple[str, float]:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if largest >= 1.5 * factor:
            return unit, factor
    return "kB", 1e3


def _name_sizes(ax: Axes, rows: Rows, factor: float) -> None:
    """Write at the bottom which settings lie above each size."""
    groups: list[tuple[float, list[str]]] = []
    left, right = ax.get_xlim()
    for row in sorted((r for r in rows if r["method"] != "float"), key=lambda r: r["bytes"]):
        size = row["bytes"] / factor
        if not groups or size - groups[-1][0] > 0.09 * (right - left):
            groups.append((size, []))
        if row["setting"] not in groups[-1][1]:
            groups[-1][1].append(row["setting"])
    ax.margins(x=0.09)
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.16 * (high - low), high)
    for size, settings in groups:
        where: dict[str, Any] = {
            "xycoords": ("data", "axes fraction"),
            "ha": "center",
            "va": "bottom",
        }
        ax.annotate("\n".join(settings), (size, 0.015), color=GREY, fontsize=8.5, **where)
