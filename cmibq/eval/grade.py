"""Answers that a model generates by itself, compared with the right ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cmibq.data import CalibSample
from cmibq.errors import DataError
from cmibq.eval.generate import generate_answers, prompt
from cmibq.eval.questions import Questions
from cmibq.eval.samples import Sample
from cmibq.eval.vqa import exact_match, leave_one_out, vqa_accuracy
from cmibq.models import LoadedModel
from cmibq.recipe import EvalConfig

__all__ = ["check_answers", "graded", "official_accuracy", "right_answers"]

_METRICS = {"exact_match": exact_match, "vqa": vqa_accuracy}


def right_answers(item: CalibSample) -> list[str]:
    """Return what counts as right: the key ``answers`` of an item, else its last answer.

    Raises:
        DataError: ``answers`` is no list of texts (or of objects with ``answer``).
    """
    told = item.raw.get("answers")
    if not told:
        return [next(m.text for m in reversed(item.messages) if m.role == "assistant").strip()]
    found = [a.get("answer") if isinstance(a, dict) else a for a in told]
    if not all(isinstance(a, str) for a in found):
        raise DataError(f"{item.where}: answers is {told!r}; write a list of texts")
    return [str(a) for a in found]


def check_answers(questions: Questions, cfg: EvalConfig) -> None:
    """Check, before a question is asked, that its answers are enough for the metric.

    Raises:
        DataError: vqa is asked for and an item has fewer than three answers; names it.
    """
    for encoded in questions.samples if cfg.metric == "vqa" else ():
        if (count := len(right_answers(encoded.sample))) < 3:
            raise DataError(
                f"{encoded.sample.where}: {count} answers, and vqa counts how many of at"
                " least 3 people agree; add the key answers, or set metric to exact_match"
            )


def graded(
    loaded: LoadedModel,
    questions: Questions,
    samples: Sequence[Sample],
    cfg: EvalConfig,
    *,
    progress: bool = True,
) -> list[Sample]:
    """Let the model answer by itself, and add its answers and what they count to the samples.

    Args:
        loaded: the model.
        questions: what is asked.
        samples: what `cmibq.eval.score.score` returned for them, in the same order.
        cfg: metric, batch size, longest answer.
        progress: whether to show a progress bar.
    """
    right = [right_answers(e.sample) for e in questions.samples]
    made = generate_answers(
        loaded,
        [prompt(e) for e in questions.samples],
        batch_size=cfg.batch_size,
        max_new_tokens=cfg.max_new_tokens,
        progress=progress,
    )
    metric = _METRICS[cfg.metric]
    return [
        dataclasses.replace(s, generated=text, score=metric(text, answers))
        for s, text, answers in zip(samples, made, right, strict=True)
    ]


def official_accuracy(questions: Questions, samples: Sequence[Sample]) -> float:
    """Return the mean VQA accuracy as the official code has it; see `leave_one_out`.

    Args:
        questions: what was asked.
        samples: what `graded` returned for them.
    """
    pairs = zip(samples, questions.samples, strict=True)
    found = [leave_one_out(s.generated, right_answers(e.sample)) for s, e in pairs]
    return sum(found) / len(found)
