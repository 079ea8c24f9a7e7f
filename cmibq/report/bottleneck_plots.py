"""Figures of a CM-IBQ training: each takes records or diagnostics and returns the Axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cmibq.report.curves import Records, above, begin_axes, mark_stage, smooth, steps_through
from cmibq.report.style import GREY, INK, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_bit_heatmap",
    "plot_bit_histogram",
    "plot_channel_rates",
    "plot_information_plane",
    "plot_losses",
    "plot_rate_distortion",
]

_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_TERMS = (
    ("task", "task", INK),
    ("reconstruction", "reconstruction", _BLUE),
    ("rate", "rate, nats per element", _GREEN),
    ("bitrate", "bit-rate term", _ORANGE),
    ("alignment", "alignment", _RED),
)


def plot_losses(records: Records, ax: Axes | None = None) -> Axes:
    """Draw every loss term that is not always 0 by step, on a logarithmic axis.

    Args:
        records: of the journal.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    ax = tidy(begin_axes(ax))
    steps, border = steps_through(records)
    drawn = 0
    for key, name, colour in _TERMS:
        label: str | None = name
        for stage in (1, 2):
            told = [
                (s, r[key])
                for s, r in zip(steps, records, strict=True)
                if key in r and r["stage"] == stage
            ]
            if not any(v > 0 for _, v in told):
                continue
            x, y = [s for s, _ in told], [v for _, v in told]
            ax.plot(x, y, color=colour, lw=0.6, alpha=0.25)
            ax.plot(x, smooth(y), color=colour, lw=1.5, label=label)
            drawn, label = drawn + (label is not None), None
    ax.set_yscale("log")
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("loss term")
    mark_stage(ax, border, max(steps, default=0))
    above(ax, max(drawn, 1))
    return ax


def plot_bit_histogram(diagnostics: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw how many channels have how many bits.

    Args:
        diagnostics: of `cmibq.train.diagnostics.diagnose`.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    ax = tidy(begin_axes(ax, 5.0, 3.0))
    told = {int(bits): count for bits, count in diagnostics["histogram"].items()}
    bars = ax.bar(list(told), list(told.values()), width=0.78, color=_BLUE)
    ax.bar_label(bars, [str(n) if n else "" for n in told.values()], padding=2, fontsize=8.5)
    mean = sum(diagnostics["bits"]) / max(len(diagnostics["bits"]), 1)
    ax.axvline(mean, color=INK, lw=1.1, ls=(0, (5, 3)), zorder=0.5, label=f"mean {mean:.2f}")
    ax.margins(y=0.12)
    ax.set_xticks(list(told))
    ax.set_xlabel("bits per element")
    ax.set_ylabel("channels")
    above(ax, 1)
    return ax


def plot_bit_heatmap(records: Records, ax: Axes | None = None) -> Axes:
    """Draw the bits of all channels over the steps; channels ordered by their last bits.

    Args:
        records: of ``bits.jsonl``, which `cmibq.train.diagnostics.BitRecorder` writes.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    import numpy as np

    ax = begin_axes(ax)
    steps, border = steps_through(records)
    table = np.array([r["bits"] for r in records], dtype=float).T
    table = table[np.argsort(-table[:, -1], kind="stable")]
    at = np.array(steps, dtype=float)
    edges = np.concatenate([at, [at[-1] + (at[-1] - at[-2] if len(at) > 1 else 1)]])
    mesh = ax.pcolormesh(
        edges, np.arange(len(table) + 1), table, cmap="viridis", vmin=0, rasterized=True
    )
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_label("bits per element")
    bar.outline.set_visible(False)
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("channel, most bits first")
    ax.invert_yaxis()
    if 0 < border < edges[-1]:
        ax.axvline(border, color="white", lw=1.2, ls=(0, (5, 3)))
    return ax


def plot_rate_distortion(diagnostics: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw how near the reconstruction is against the bits that are spent.

    Args:
        diagnostics: of `cmibq.train.diagnostics.diagnose`.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    ax = tidy(begin_axes(ax, 5.6, 3.2), grid="both")
    curve = sorted(diagnostics["curve"], key=lambda p: p["bits"])
    x, y = [p["bits"] for p in curve], [p["snr"] for p in curve]
    ax.plot(x, y, color=_BLUE, marker="o", ms=5, lw=1.4)
    for point in curve:
        if abs(point["target"] - diagnostics["target_bits"]) < 1e-9:
            ax.plot(
                [point["bits"]],
                [point["snr"]],
                ls="",
                marker="o",
                ms=10,
                mfc="none",
                mec=_RED,
                mew=1.8,
                label=f"trained for a mean of {point['target']:g}",
            )
            above(ax, 1)
    coded = "coded" if diagnostics.get("rate") == "discrete" else "KL"
    ax.set_xlabel(f"bits per element, {coded}")
    ax.set_ylabel("signal to error, dB")
    return ax


def plot_channel_rates(diagnostics: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw the bits that channels have, and those that they take; dead channels are marked.

    Args:
        diagnostics: of `cmibq.train.diagnostics.diagnose`.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    ax = tidy(begin_axes(ax))
    bits, rates = diagnostics["bits"], diagnostics["rates"]
    order = sorted(range(len(bits)), key=lambda i: (-bits[i], -rates[i]))
    x = range(len(order))
    ax.step(x, [bits[i] for i in order], where="mid", color=GREY, lw=1.4, label="allocated")
    name = "coded" if diagnostics.get("rate") == "discrete" else "KL"
    ax.plot(x, [rates[i] for i in order], ls="", marker="o", ms=3, color=_BLUE, label=name)
    dead = set(diagnostics["dead"])
    gone = [at for at, i in enumerate(order) if i in dead]
    if gone:
        y = [rates[order[at]] for at in gone]
        label = f"dead ({len(gone)} of {len(order)})"
        ax.plot(gone, y, ls="", marker="x", ms=5, color=_RED, label=label)
    ax.set_xlabel("channel, most bits first")
    ax.set_ylabel("bits per element")
    ax.set_ylim(bottom=-0.15)
    above(ax, 3)
    return ax


def plot_information_plane(points: Records, ax: Axes | None = None) -> Axes:
    """Draw what the latent knows of the answer (at least) against that of the image (at most).

    Args:
        points: of `cmibq.train.diagnostics.information_plane`.
        ax: axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    ax = tidy(begin_axes(ax, 5.6, 3.4), grid="both")
    x, y = smooth([p["rate"] for p in points]), smooth([p["relevance"] for p in points])
    steps = [p["step"] for p in points]
    ax.plot(x, y, color=GREY, lw=0.8, zorder=1)
    dots = ax.scatter(x, y, c=steps, cmap="viridis", s=14, zorder=2, rasterized=True)
    bar = ax.figure.colorbar(dots, ax=ax, pad=0.02)
    bar.set_label("step of stage 2")
    bar.outline.set_visible(False)
    ax.set_xlabel("coded bits per image: at most I(image; latent)")
    ax.set_ylabel("H(answer) \N{MINUS SIGN} cross-entropy, bits:\nat least I(latent; answer)")
    return ax
