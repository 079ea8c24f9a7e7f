"""The page of a CM-IBQ training, and the same figures while it runs in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmibq.fileio import read_json
from cmibq.report import bottleneck_plots as plots
from cmibq.report.page import Figure, mean_of_last, of_stage, read_run, write_page
from cmibq.report.style import style

__all__ = ["LiveFigure", "write_training_report"]


def _rows(
    log: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], found: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    """Return the numbers above the figures."""
    made = [(f"steps of stage {s}", str(len(of_stage(log, s)))) for s in (1, 2)]
    last = of_stage(log, 2) or log
    names = (
        ("task", "task loss, nats per token"),
        ("reconstruction", "mean squared error of reconstruction"),
        ("rate", "rate, nats per element"),
        ("alignment", "alignment loss"),
    )
    for key, name in names:
        value = mean_of_last(last, key)
        if value:
            made.append((f"{name} (last tenth)", f"{value:.4g}"))
    if last:
        made.append(("target, bits per element", f"{last[-1]['target_bits']:g}"))
    if found is not None:
        mean = sum(found["bits"]) / len(found["bits"])
        made.append(("mean bits allocated", f"{mean:.3f}"))
        spent = sum(found["rates"]) / len(found["rates"])
        made.append(("mean bits taken", f"{spent:.3f}"))
        made.append(("bytes per image, at that", f"{spent * facts['elements'] / 8:.1f}"))
        if found.get("bytes"):
            made.append(("bytes per image, coded, with header", f"{found['bytes']:.1f}"))
        made.append(("dead channels", f"{len(found['dead'])} of {len(found['bits'])}"))
    return made


def _figures(
    log: Sequence[Mapping[str, Any]],
    bits: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    found: Mapping[str, Any] | None,
) -> list[Figure]:
    """Return title, explanation and drawing of every figure that there are numbers for."""
    from cmibq.train.diagnostics import information_plane

    made: list[Figure] = []
    if log:
        text = "Every step, and its moving average over a twentieth of the stage."
        made.append(("Loss terms", text, lambda: plots.plot_losses(log)))
    if bits:
        text = "Mean over the samples of a batch. Dashed: where stage two begins."
        made.append(("Bits over time", text, lambda: plots.plot_bit_heatmap(bits)))
    points = information_plane(log, facts)
    if points:
        text = (
            "Bounds, not estimates: coded bits are never fewer than the information between image"
            " and latent, and entropy less cross-entropy is never more than that between latent and"
            " answer. The entropy is that of the answers of the training data as often as they"
            f" occur: {facts['answer_bits']:.2f} bits."
        )
        made.append(("Information plane", text, lambda: plots.plot_information_plane(points)))
    if found is not None:
        text = "Whole bits, as evaluation has them."
        made.append(("Bits of channels", text, lambda: plots.plot_bit_histogram(found)))
        text = "A channel is dead that takes less than a hundredth of a bit per element."
        made.append(("Rate of channels", text, lambda: plots.plot_channel_rates(found)))
        text = "The trained layer at other targets, without more training."
        made.append(("Rate and distortion", text, lambda: plots.plot_rate_distortion(found)))
    return made


def write_training_report(folder: str | Path, title: str = "CM-IBQ training") -> Path:
    """Write ``report.html`` from what a training left in a folder.

    Args:
        folder: with ``log.jsonl``, ``run.json``, perhaps ``bits.jsonl`` and ``diagnostics.json``.
        title: of the page.

    Returns:
        The page; it opens offline.

    Raises:
        DataError: there is no training in the folder.
    """
    from cmibq.train.journal import read_journal

    out = Path(folder)
    facts, log = read_run(out), read_journal(out / "log.jsonl")
    bits = read_journal(out / "bits.jsonl")
    file = out / "diagnostics.json"
    found = read_json(file) if file.exists() else None
    return write_page(out, title, _rows(log, facts, found), _figures(log, bits, facts, found))


class LiveFigure:
    """Loss terms that are drawn anew while a training runs in Jupyter: give it as ``on_step``.

    Args:
        stage: of the training.
        every: steps between drawings.
        show: what to do with a figure; None = show it in the notebook in place of the last one.

    Example:
        >>> shown = []
        >>> live = LiveFigure(2, every=2, show=shown.append)
        >>> for step in range(4):
        ...     live(step, {"task": 1.0 / (step + 1), "total": 1.0})
        >>> len(shown)
        2
    """

    def __init__(
        self, stage: int = 1, *, every: int = 20, show: Callable[[Any], None] | None = None
    ) -> None:
        self.stage, self.every = stage, every
        self.records: list[dict[str, Any]] = []
        self.show = _in_notebook if show is None else show

    def __call__(self, step: int, log: Mapping[str, float]) -> None:
        """Note a step; draw if it is time."""
        self.records.append({"stage": self.stage, "step": step, **log})
        if len(self.records) % self.every == 0:
            with style():
                self.show(plots.plot_losses(self.records).figure)


def _in_notebook(figure: Any) -> None:
    """Show a figure in place of the last one."""
    from IPython.display import clear_output, display

    clear_output(wait=True)
    display(figure)
