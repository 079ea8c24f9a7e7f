"""Figures of a composed tower's attention: entropy maps, and where patches look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cmibq.report.curves import begin_axes
from cmibq.report.style import GREY, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cmibq.eval.attention import Looks, View

__all__ = [
    "plot_before_after",
    "plot_entropy_map",
    "plot_looks",
    "plot_overlay",
    "plot_patch",
]

_YELLOW = "#F0E442"
_TINT = (0.84, 0.19, 0.0)
_EDGE = 2.1  # inches of one picture


def _panels(rows: int, columns: int) -> Any:
    """Return axes [rows, columns] for pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_EDGE * columns + 0.5, _EDGE * rows + 0.4), layout="constrained")
    return figure.subplots(rows, columns, squeeze=False)


def _bar(ax: Axes, drawn: Any, label: str) -> None:
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)


def plot_entropy_map(
    entropy: Any,
    ax: Axes | None = None,
    *,
    layers: Sequence[int] = (),
    keys: int = 0,
) -> Axes:
    """Draw the mean entropy of attention of every head, a row per fusion.

    Args:
        entropy: [n, H] in nats, such as `cmibq.eval.attention.Looks.mean_entropy` returns.
        ax: axes to draw on; None makes a figure.
        layers: names of the rows: the anchor's layers; default: numbers from 1.
        keys: tokens that are looked at; the colours then end at ``ln(keys)``, attention to all
            alike.

    Returns:
        The axes.
    """
    import numpy as np

    table = np.asarray(entropy, dtype=float)
    count, heads = table.shape
    most = float(np.log(keys)) if keys > 1 else float(table.max(initial=0.0)) or 1.0
    ax = begin_axes(ax, 1.7 + 0.55 * heads, 1.1 + 0.5 * count)
    drawn = ax.imshow(table, cmap="viridis", vmin=0, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        shade = "white" if value < 0.6 * most else INK
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=shade, fontsize=8.5)
    ax.set_xticks(range(heads), [str(h + 1) for h in range(heads)])
    ax.set_yticks(range(count), [str(n) for n in (layers or range(1, count + 1))])
    ax.spines[:].set_visible(False)
    ax.set_xlabel("head")
    ax.set_ylabel("behind layer" if layers else "fusion")
    _bar(ax, drawn, f"nats; uniform = {most:.2f}" if keys > 1 else "entropy, nats")
    return ax


def _show(view: View, ax: Axes, *, pale: bool = False) -> None:
    """Draw a picture in units of its patches; a pale one is the ground of an overlay."""
    import numpy as np

    rows, columns = view.grid
    picture = view.picture.astype(float) / 255
    if pale:
        grey = picture.mean(axis=2, keepdims=True)
        picture = 0.3 + 0.7 * np.repeat(grey, 3, axis=2)
    ax.imshow(picture, extent=(0, columns, rows, 0), interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def plot_patch(view: View, patch: int, ax: Axes | None = None) -> Axes:
    """Draw what a tower sees, with one of its patches framed.

    Args:
        view: what it sees.
        patch: number of the patch, row by row from 0.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    from matplotlib.patches import Rectangle

    ax = begin_axes(ax, _EDGE, _EDGE)
    _show(view, ax)
    row, column = divmod(patch, view.grid[1])
    ax.add_patch(Rectangle((column, row), 1, 1, fill=False, ec=INK, lw=4, clip_on=False))
    ax.add_patch(Rectangle((column, row), 1, 1, fill=False, ec=_YELLOW, lw=2, clip_on=False))
    return ax


def plot_overlay(
    view: View, weights: Any, ax: Axes | None = None, *, most: float | None = None
) -> Axes:
    """Draw attention over what a tower sees: patches are the redder the more they are looked at.

    Args:
        view: what it sees.
        weights: [rows, columns], attention of its patches, such as `Looks.of_patch` returns.
        ax: axes to draw on; None makes a figure.
        most: weight of the fullest colour; None = the largest.

    Returns:
        The axes.
    """
    import numpy as np

    ax = begin_axes(ax, _EDGE, _EDGE)
    _show(view, ax, pale=True)
    told = np.asarray(weights, dtype=float)
    top = float(told.max(initial=0.0)) if most is None else most
    tint = np.zeros((*told.shape, 4))
    tint[..., :3] = _TINT
    tint[..., 3] = 0.85 * np.clip(told / max(top, 1e-12), 0, 1)
    ax.imshow(tint, extent=(0, view.grid[1], view.grid[0], 0), interpolation="nearest")
    return ax


def plot_looks(looks: Looks, patches: Sequence[int], fusion: int = -1) -> list[Axes]:
    """Draw where patches of the anchor look: a row per patch, the anchor left, the other right.

    Args:
        looks: attention for one image.
        patches: numbers of the anchor's patches.
        fusion: which fusion, from 0; negative numbers count from the last.

    Returns:
        The axes of all pictures, row by row; they share one figure.
    """
    panels = _panels(len(patches), 2)
    panels[0, 0].set_title("anchor's patch")
    panels[0, 1].set_title(f"looks here, layer {looks.layers[fusion]}")
    for (left, right), patch in zip(panels, patches, strict=True):
        weights, prefix = looks.of_patch(patch, fusion)
        plot_patch(looks.anchor, patch, left)
        plot_overlay(looks.augmenting, weights, right)
        _note(right, weights, prefix)
    return list(panels.ravel())


def _note(ax: Axes, weights: Any, prefix: float) -> None:
    """Say how bright the brightest patch is, and what goes to tokens that are no patches."""
    text = f"up to {100 * float(weights.max()):.0f} % a patch"
    text += f", {100 * prefix:.0f} % on CLS" if prefix > 0.005 else ""
    ax.set_xlabel(text, color=GREY, fontsize=8.5)


def plot_before_after(
    before: Looks, after: Looks, patches: Sequence[int], fusion: int = -1
) -> list[Axes]:
    """Draw where patches look before and after quantisation, on one scale, and the difference.

    Args:
        before: attention of the float tower for one image.
        after: of the quantised tower for the same image.
        patches: numbers of the anchor's patches.
        fusion: which fusion, from 0; negative numbers count from the last.

    Returns:
        The axes of all pictures, row by row; they share one figure.
    """
    import numpy as np

    panels = _panels(len(patches), 4)
    for ax, title in zip(
        panels[0], ("anchor's patch", "float", "quantised", "change"), strict=True
    ):
        ax.set_title(title)
    for row, patch in zip(panels, patches, strict=True):
        (one, left_one), (two, left_two) = (x.of_patch(patch, fusion) for x in (before, after))
        most = max(float(one.max()), float(two.max()))
        plot_patch(before.anchor, patch, row[0])
        for ax, weights, prefix in ((row[1], one, left_one), (row[2], two, left_two)):
            plot_overlay(before.augmenting, weights, ax, most=most)
            _note(ax, weights, prefix)
        change = two - one
        _show(before.augmenting, row[3], pale=True)
        row[3].imshow(
            change,
            cmap="RdBu_r",
            vmin=-most,
            vmax=most,
            alpha=0.75,
            extent=(0, change.shape[1], change.shape[0], 0),
            interpolation="nearest",
        )
        row[3].set_xlabel(
            f"at most {100 * float(np.abs(change).max()):.1f} points", color=GREY, fontsize=8.5
        )
    return list(panels.ravel())
