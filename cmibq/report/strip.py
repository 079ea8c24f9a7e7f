"""Choose questions to show and put their pictures and answers side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmibq.report.analysis import METHODS, label, setting_key
from cmibq.report.collect import Run

__all__ = ["build_strip", "embed_image"]


def embed_image(path: Path, longest: int = 240) -> str | None:
    """Return a picture as a data URI, made smaller if it is large; None if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError:
        return None
    if max(image.size) > longest:
        image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def build_strip(runs: Sequence[Run], group: str, *, each: int = 8, seed: int = 0) -> dict[str, Any]:
    """Choose questions about one model at the setting where RTN flips most answers.

    Args:
        runs: all runs.
        group: the model.
        each: how many questions whose answers change, and as many drawn at random.
        seed: seed of both draws.

    Returns:
        ``setting``, ``methods`` and the lists ``changed`` and ``random`` of questions; each has the
        text, the right answer, the float model's answer and one answer per method. Empty if there
        is no float model or nothing quantised.
    """
    mine = [run for run in runs if run.group == group]
    base = next((run for run in mine if run.method == "float"), None)
    quantised = [run for run in mine if run.method != "float"]
    if base is None or not quantised:
        return {}
    setting = max(
        sorted({run.setting for run in quantised}, key=setting_key),
        key=lambda s: max(len(_changed(r, base)) for r in quantised if r.setting == s),
    )
    shown = sorted((r for r in quantised if r.setting == setting), key=_rank)
    rng = np.random.default_rng(seed)
    odd = sorted({i for run in shown for i in _changed(run, base)})
    random = rng.permutation(len(base.samples))[:each].tolist()
    return {
        "setting": label(*setting),
        "methods": [run.method for run in shown],
        "n_changed": len(odd),
        "changed": [_card(i, base, shown) for i in _spread(odd, base, each, rng)],
        "random": [_card(i, base, shown) for i in random],
    }


def _rank(run: Run) -> tuple[int, str]:
    known = run.method in METHODS
    return (METHODS.index(run.method) if known else len(METHODS), run.method)


def _changed(run: Run, base: Run) -> list[int]:
    """Return the questions that a run answers otherwise than the float model."""
    pairs = enumerate(zip(run.samples, base.samples, strict=True))
    return [i for i, (mine, its) in pairs if (mine.pred, mine.correct) != (its.pred, its.correct)]


def _spread(odd: Sequence[int], base: Run, each: int, rng: np.random.Generator) -> list[int]:
    """Draw questions so that all kinds and pictures get their turn before one comes again."""
    turns: dict[str, int] = {}
    seen: dict[str, int] = {}
    ranked: list[tuple[int, int, int, int]] = []
    for index in rng.permutation(odd).tolist() if odd else []:
        sample = base.samples[index]
        kind = turns[sample.kind] = turns.get(sample.kind, -1) + 1
        image = seen[sample.image] = seen.get(sample.image, -1) + 1
        ranked.append((image, kind, len(ranked), index))
    return [index for *_, index in sorted(ranked)[:each]]


def _card(index: int, base: Run, shown: Sequence[Run]) -> dict[str, Any]:
    sample = base.samples[index]

    def said(run: Run) -> dict[str, Any]:
        its = run.samples[index]
        return {
            "method": run.method,
            "answer": its.pred,
            "correct": its.correct,
            "differs": (its.pred, its.correct) != (sample.pred, sample.correct),
        }

    return {
        "id": sample.id,
        "kind": sample.kind,
        "question": sample.question,
        "answer": sample.answer,
        "image": str(base.find_image(sample)),
        "float": said(base),
        "said": [said(run) for run in shown],
    }
