"""The page of a CALM training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmibq.recipe import format_size
from cmibq.report import composition_plots as plots
from cmibq.report.page import Figure, mean_of_last, of_stage, read_run, write_page

__all__ = ["write_calm_report"]

Records = Sequence[Mapping[str, Any]]


def _rows(log: Records, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the numbers above the figures."""
    recipe = facts["recipe"]
    made = [("fusion", f"{recipe['fusion_strategy']}, {len(facts['layers'])} layers")]
    made.append(("layers of the anchor", ", ".join(str(i + 1) for i in facts["layers"])))
    made.append(("layers looked at", ", ".join(str(i + 1) for i in facts["sources"])))
    made += [(f"{name}", f"{count:,}") for name, count in facts.get("parameters", {}).items()]
    for stage in (1, 2):
        own = of_stage(log, stage)
        if not own:
            continue
        made.append((f"steps of stage {stage}", str(len(own))))
        for key, name in (("train_loss", "loss, nats per token"), ("attention_entropy", "entropy")):
            value = mean_of_last(own, key)
            if value is not None:
                made.append((f"{name} (last tenth of stage {stage})", f"{value:.4g}"))
        size = facts.get(f"peak_bytes_{stage}")
        if size:
            made.append((f"memory in the first step of stage {stage}", format_size(size)))
    if "added_ms" in facts:
        made.append(("vision, anchor alone, ms per image", f"{facts['anchor_ms']:.2f}"))
        made.append(("added by composing, ms per image", f"{facts['added_ms']:.2f}"))
    return made


def _figures(log: Records, seen: Records, facts: Mapping[str, Any]) -> list[Figure]:
    """Return title, explanation and drawing of every figure that there are numbers for."""
    made: list[Figure] = []
    layers = facts["layers"]
    every = "Every step, and its moving average over a twentieth of the stage."
    if log:
        made.append(("Loss", every, lambda: plots.plot_steps(log, "train_loss", "nats per token")))
    if facts.get("start_losses"):
        text = "The model with fresh fusions of every strategy, beside the anchor alone."
        losses = facts["start_losses"]
        made.append(("Before training", text, lambda: plots.plot_start(losses)))
    if any(r.get("calm_module_grad_norm") for r in log):
        name = "norm of the fusions' gradients"
        draw = lambda: plots.plot_steps(log, "calm_module_grad_norm", name, log=True)  # noqa: E731
        made.append(("Gradients", every, draw))
    with_entropy = [r for r in seen if "entropy" in r]
    if with_entropy:
        text = (
            "In nats, mean over images and rows: a head that looks at one patch has 0, one that"
            " looks at k patches alike log(k). Faint lines are heads."
        )
        made.append(("Entropy of attention", text, lambda: plots.plot_entropy(seen, layers)))
        last = with_entropy[-1]
        text = f"At step {last['step']} of stage {last['stage']}."
        draw = lambda: plots.plot_entropy_table(last, layers)  # noqa: E731
        made.append(("Entropy by layer and head", text, draw))
    if log:
        made.append(
            ("Learning rate", every, lambda: plots.plot_steps(log, "learning_rate", "rate"))
        )
    return made


def write_calm_report(folder: str | Path, title: str = "CALM training") -> Path:
    """Write ``report.html`` from what a training left in a folder.

    Args:
        folder: with ``log.jsonl``, ``run.json`` and ``monitor.jsonl``.
        title: of the page.

    Returns:
        The page; it opens offline.

    Raises:
        DataError: there is no training in the folder.
    """
    from cmibq.train.journal import read_journal

    out = Path(folder)
    facts, log = read_run(out), read_journal(out / "log.jsonl")
    seen = read_journal(out / "monitor.jsonl")
    return write_page(out, title, _rows(log, facts), _figures(log, seen, facts))
