"""Figures of a CALM training: each takes records and returns the Axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmibq.report.attention_plots import plot_entropy_map
from cmibq.report.curves import (
    Records,
    above,
    begin_axes,
    mark_stage,
    plot_term,
    smooth,
    steps_through,
)
from cmibq.report.style import GREY, INK, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_entropy", "plot_entropy_table", "plot_start", "plot_steps"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#7A5195", "#6B6B6B")


def plot_steps(
    records: Records, key: str, name: str, ax: Axes | None = None, *, log: bool = False
) -> Axes:
    """Draw one number of every step.

    Args:
        records: of ``log.jsonl``.
        key: such as ``train_loss``.
        name: at the vertical axis.
        ax: axes to draw on; None makes a figure.
        log: logarithmic axis.

    Returns:
        The axes.
    """
    ax = tidy(begin_axes(ax))
    first = plot_term(ax, records, key, colour=INK)
    if log:
        ax.set_yscale("log")
    ax.set_xlabel("optimiser step")
    ax.set_ylabel(name)
    mark_stage(ax, first, max(steps_through(records)[0], default=0))
    return ax


def plot_entropy(records: Records, layers: Sequence[int], ax: Axes | None = None) -> Axes:
    """Draw the entropy of attention by step: a colour for each layer, a faint line for each head.

    Args:
        records: of ``monitor.jsonl``.
        layers: of the anchor, from 0.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    import numpy as np

    ax = tidy(begin_axes(ax))
    records = [r for r in records if "entropy" in r]
    steps, first = steps_through(records)
    table = np.array([r["entropy"] for r in records], dtype=float)  # [steps, layers, heads]
    for n, layer in enumerate(layers):
        colour = _COLOURS[n % len(_COLOURS)]
        ax.plot(steps, table[:, n], color=colour, lw=0.6, alpha=0.3)
        mean = smooth(table[:, n].mean(1).tolist())
        ax.plot(steps, mean, color=colour, lw=1.6, label=f"layer {layer + 1}")
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("entropy of attention, nats")
    mark_stage(ax, first, max(steps, default=0))
    above(ax, min(len(layers), 4))
    return ax


def plot_entropy_table(
    record: Mapping[str, Any], layers: Sequence[int], ax: Axes | None = None
) -> Axes:
    """Draw the entropy of every layer and head at one step.

    Args:
        record: of ``monitor.jsonl``.
        layers: of the anchor, from 0.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    return plot_entropy_map(record["entropy"], ax, layers=[at + 1 for at in layers])


def plot_start(losses: Mapping[str, float | None], ax: Axes | None = None) -> Axes:
    """Draw the loss before training: of the anchor, and of every strategy with fresh fusions.

    Args:
        losses: name -> nats per token, ``anchor`` among them; None where one does not fit.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    told = {name: value for name, value in losses.items() if value is not None}
    ax = tidy(begin_axes(ax, 5.6, 0.9 + 0.4 * len(told)), grid="x")
    names = list(told)
    bars = ax.barh(
        names,
        [told[n] for n in names],
        color=[GREY if n == "anchor" else _COLOURS[0] for n in names],
    )
    ax.bar_label(bars, [f"{told[n]:.3f}" for n in names], padding=3, fontsize=8.5)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlabel("loss before training, nats per token")
    return ax
