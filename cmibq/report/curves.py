"""What curves over the steps of a training share: axes, a legend, the border between stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmibq.report.style import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Records", "above", "begin_axes", "mark_stage", "plot_term", "smooth", "steps_through"]

Records = Sequence[Mapping[str, Any]]


def begin_axes(ax: Axes | None, width: float = 7.2, height: float = 3.4) -> Axes:
    """Return the axes that were given, or those of a fresh figure of this size in inches."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").subplots()


def above(ax: Axes, columns: int) -> None:
    """Put the legend above the axes."""
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, borderaxespad=0.1)


def steps_through(records: Records) -> tuple[list[int], int]:
    """Return steps counted through both stages, and where the second begins."""
    one = [r["step"] for r in records if r["stage"] == 1]
    gap = one[1] - one[0] if len(one) > 1 else 1
    first = one[-1] + gap if one else 0
    return [r["step"] + (first if r["stage"] == 2 else 0) for r in records], first


def mark_stage(ax: Axes, at: int, last: int) -> None:
    """Mark where stage two begins."""
    if 0 < at <= last:
        ax.axvline(at - 0.5, color=GREY, lw=1.1, ls=(0, (5, 3)), zorder=1)
        ax.annotate(
            " stage 2",
            (at - 0.5, 1),
            xycoords=("data", "axes fraction"),
            va="top",
            color=GREY,
            fontsize=8.5,
        )


def smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Return a moving average, over a twentieth of the values; each end has what there is."""
    half = int(len(values) * share / 2)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = [(max(i - half, 0), min(i + half + 1, len(values))) for i in range(len(values))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in ends]


def plot_term(
    ax: Axes, records: Records, key: str, *, colour: str, label: str | None = None
) -> int:
    """Draw a number of the records by step: every step faint, its moving average strong.

    Args:
        ax: axes to draw on.
        records: of the journal, of both stages.
        key: which number.
        colour: of the curve.
        label: in the legend; None = none.

    Returns:
        Where stage two begins, in steps.
    """
    steps, first = steps_through(records)
    for stage in (1, 2):
        told = [
            (s, r[key])
            for s, r in zip(steps, records, strict=True)
            if isinstance(r.get(key), float) and r["stage"] == stage
        ]
        if told:
            x, y = [s for s, _ in told], [v for _, v in told]
            ax.plot(x, y, color=colour, lw=0.6, alpha=0.25)
            ax.plot(x, smooth(y), color=colour, lw=1.5, label=label)
            label = None
    return first
