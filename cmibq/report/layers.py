"""The figure of errors per layer: one panel per kind of layer, one group of bars per block."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from cmibq.report.analysis import METHODS
from cmibq.report.style import colour, marker, name, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_layers", "split_layer"]

_BARS: Final = 10
"""More blocks than this are drawn as lines."""


def split_layer(layer: str) -> tuple[int, str]:
    """Return the block number and the kind of a layer.

    Example:
        >>> split_layer("model.language_model.layers.3.self_attn.q_proj")
        (3, 'q_proj')
        >>> split_layer("lm_head")
        (0, 'lm_head')
    """
    found = re.search(r"\.(\d+)\.", layer)
    return int(found.group(1)) if found else 0, layer.rpartition(".")[2]


def plot_layers(errors: Mapping[str, Mapping[str, float]]) -> Sequence[Axes]:
    """Draw the relative error of every layer under several methods.

    Args:
        errors: method -> layer name -> relative error (0.1 = a tenth of the layer's output).

    Returns:
        One Axes per kind of layer, in the order of the model.
    """
    from matplotlib.figure import Figure

    methods = [m for m in METHODS if m in errors] + sorted(set(errors) - set(METHODS))
    layers = list(dict.fromkeys(layer for method in methods for layer in errors[method]))
    kinds = list(dict.fromkeys(split_layer(layer)[1] for layer in layers))
    columns = min(4, max(len(kinds), 1))
    rows = math.ceil(len(kinds) / columns) or 1
    figure = Figure(figsize=(12.4, 0.5 + 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for ax, kind in zip(grid, kinds, strict=False):
        _panel(ax, kind, {m: errors[m] for m in methods})
    for ax in grid[len(kinds) :]:
        ax.set_axis_off()
    for ax in grid[::columns]:
        ax.set_ylabel("relative error, %")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    return list(grid[: len(kinds)])


def _panel(ax: Axes, kind: str, errors: Mapping[str, Mapping[str, float]]) -> None:
    """Draw one kind of layer: bars, or lines where there are too many blocks for bars."""
    found = {method: _of_kind(kind, its) for method, its in errors.items()}
    blocks = sorted({block for its in found.values() for block in its})
    width = 0.8 / max(len(found), 1)
    for place, (method, its) in enumerate(found.items()):
        look: dict[str, Any] = {"color": colour(method), "label": name(method)}
        if len(blocks) > _BARS:
            ax.plot(list(its), list(its.values()), marker=marker(method), ms=3.5, lw=1.1, **look)
        else:
            x = [block + (place - (len(found) - 1) / 2) * width for block in its]
            ax.bar(x, list(its.values()), width * 0.92, **look)
    ax.set_ylim(bottom=0)
    tidy(ax).set_title(kind)
    step = math.ceil(len(blocks) / 8) or 1
    ax.set_xticks(blocks[::step])
    ax.set_xlabel("block")


def _of_kind(kind: str, errors: Mapping[str, float]) -> dict[int, float]:
    """Return block -> error in per cent of the layers of one kind."""
    pairs = [(*split_layer(layer), error) for layer, error in errors.items()]
    return {block: 100 * error for block, its, error in sorted(pairs) if its == kind}
