"""Requests of lmms-eval: its documents become our questions, our answers its results."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmibq.data import CalibSample, Encoded, Message, encode
from cmibq.data.base import IMAGE, to_rgb
from cmibq.errors import DataError
from cmibq.eval.generate import generate_answers, prompts
from cmibq.eval.questions import Questions
from cmibq.eval.score import score
from cmibq.models import LoadedModel

__all__ = ["answer_requests", "likelihood_requests"]

_LONGEST = 1024  # tokens of an answer where a task does not say, as lmms-eval's own models
_SAMPLED = ("temperature", "top_p", "top_k")
Json = dict[str, Any]


def _documents(requests: Sequence[Any], task_dict: Any) -> list[Any]:
    """Return the document of every request; the last three arguments say which it is."""
    return [task_dict[r.args[-2]][r.args[-1]][r.args[-3]] for r in requests]


def _pictures(visuals: Any, folder: Path, where: str) -> tuple[Path, ...]:
    """Write the images of a document to a folder."""
    found = []
    for visual in visuals or []:
        if visual is None:
            continue
        if not hasattr(visual, "convert"):
            raise DataError(f"{where}: has a {type(visual).__name__}; only images can be measured")
        path = folder / f"{len(list(folder.iterdir()))}.png"
        to_rgb(visual).save(path)
        found.append(path)
    return tuple(found)


def _samples(
    requests: Sequence[Any], task_dict: Any, folder: Path, visuals_at: int
) -> list[CalibSample]:
    """Return the question of every request."""
    made = []
    for request, doc in zip(requests, _documents(requests, task_dict), strict=True):
        where = f"task {request.args[-2]}, document {request.args[-3]}"
        images = _pictures(request.args[visuals_at](doc), folder, where)
        text = str(request.args[0])
        marks = text.count(IMAGE)
        if marks == 0:
            text = "\n".join([*[IMAGE] * len(images), text])
        elif marks != len(images):
            raise DataError(f"{where}: {len(images)} images but {marks} {IMAGE} marks")
        made.append(CalibSample(images, (Message("user", text),), where, {}, where))
    return made


def _settings(given: Json) -> tuple[Json, list[str]]:
    """Return what ``generate`` takes of a task's settings, and the texts that end an answer."""
    until = given.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    made: Json = {"max_new_tokens": int(given.get("max_new_tokens") or _LONGEST)}
    if given.get("num_beams"):
        made["num_beams"] = int(given["num_beams"])
    if float(given.get("temperature") or 0) > 0:
        made |= {"do_sample": True}
        made |= {n: given[n] for n in _SAMPLED if given.get(n) is not None}
    return made, [u for u in until if u]


def answer_requests(
    loaded: LoadedModel,
    requests: Sequence[Any],
    task_dict: Any,
    *,
    batch_size: int = 1,
    progress: bool = True,
) -> list[str]:
    """Answer the ``generate_until`` requests of lmms-eval.

    Args:
        loaded: the model.
        requests: ``Instance`` objects whose arguments are (context, settings, function of images,
            document, task, split).
        task_dict: task -> split -> documents.
        batch_size: requests with equal settings at once.
        progress: whether to show a progress bar.

    Raises:
        DataError: a document has something other than images.
    """
    kinds: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        kinds.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
    answers = [""] * len(requests)
    for rows in kinds.values():
        some = [requests[i] for i in rows]
        settings, until = _settings(dict(some[0].args[1]))
        with tempfile.TemporaryDirectory() as folder:
            asked = prompts(_samples(some, task_dict, Path(folder), 2), loaded.processor)
            texts = generate_answers(
                loaded, asked, batch_size=batch_size, progress=progress, **settings
            )
        for i, text in zip(rows, texts, strict=True):
            for end in until:
                text = text.split(end)[0]
            answers[i] = text
    return answers


def _without_end(encoded: Encoded, end: int | None) -> Encoded:
    """Leave the end token out of the answer: choices are compared without it."""
    last = len(encoded) - 1
    if not encoded.answer[last] or int(encoded.ids[last]) != end or encoded.answer.sum() == 1:
        return encoded
    answer = encoded.answer.copy()
    answer[last] = False
    return dataclasses.replace(encoded, answer=answer)


def likelihood_requests(
    loaded: LoadedModel,
    requests: Sequence[Any],
    task_dict: Any,
    *,
    batch_size: int = 1,
    progress: bool = True,
) -> list[tuple[float, bool]]:
    """Judge the continuations of lmms-eval's ``loglikelihood`` requests.

    Args:
        loaded: the model.
        requests: ``Instance`` objects whose arguments are (context, continuation or a function of
            the document, function of images, document, task, split).
        task_dict: task -> split -> documents.
        batch_size: requests at once.
        progress: whether to show a progress bar.

    Returns:
        (mean loss per token of the continuation, as lmms-eval's models return it; whether greedy
        decoding gives it).
    """
    with tempfile.TemporaryDirectory() as folder:
        samples = []
        asked = _samples(requests, task_dict, Path(folder), 2)
        docs = _documents(requests, task_dict)
        for request, sample, doc in zip(requests, asked, docs, strict=True):
            told = request.args[1](doc) if callable(request.args[1]) else request.args[1]
            turns = (*sample.messages, Message("assistant", str(told).strip()))
            samples.append(dataclasses.replace(sample, messages=turns))
        end = getattr(loaded.processor, "tokenizer", loaded.processor).eos_token_id
        encoded = [_without_end(e, end) for e in encode(samples, loaded.processor)]
        questions = Questions(encoded, loaded.processor)
        judged = score(loaded, questions, batch_size=batch_size, progress=progress)
    counts = [int(e.answer.sum()) for e in encoded]
    return [(-s.logprob / n, s.correct) for s, n in zip(judged, counts, strict=True)]
