"""How quickly a model generates."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from cmibq.data import Encoded, collate
from cmibq.eval.questions import Questions
from cmibq.models import LoadedModel

__all__ = ["generation_speed", "greedy", "other_dtypes"]

_COMPARED = (torch.float32, torch.bfloat16)
_FEW = 4  # questions for each further dtype


class _Clock:
    """A streamer of ``generate`` that notes when tokens come."""

    def __init__(self) -> None:
        self.start, self.times = time.perf_counter(), list[float]()

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter() - self.start)

    def end(self) -> None:
        """Nothing is left to do."""


@torch.inference_mode()
def greedy(
    loaded: LoadedModel,
    questions: Questions,
    encoded: Encoded,
    tokens: int,
    *,
    stop: bool = True,
    streamer: Any = None,
) -> list[int]:
    """Answer one question with the model's own ``generate``, greedily.

    Args:
        loaded: the model.
        questions: where pixels come from.
        encoded: the question; its answer is not shown to the model.
        tokens: how many tokens to generate at most.
        stop: stop at the end token; otherwise exactly `tokens` are made.
        streamer: told of the question and of every token, as in ``generate``.

    Returns:
        The new tokens.
    """
    model: Any = loaded.model
    asked = slice(encoded.prompt_length)
    parts = {n: getattr(encoded, n)[asked] for n in ("ids", "answer", "vision")}
    batch = collate([replace(encoded, **parts)], loaded.processor, images=False)
    batch = replace(batch, image_inputs=tuple(questions.pixels(batch.images)))
    inputs = batch.model_inputs(model.dtype)
    pad = loaded.processor.tokenizer.pad_token_id
    made = model.generate(
        **inputs,
        max_new_tokens=tokens,
        min_new_tokens=None if stop else tokens,
        do_sample=False,
        pad_token_id=0 if pad is None else pad,
        streamer=streamer,
    )
    new: list[int] = made[0, batch.input_ids.shape[1] :].tolist()
    return new


def generation_speed(
    loaded: LoadedModel, questions: Questions, *, prompts: int = 8, tokens: int = 32
) -> dict[str, float | None] | None:
    """Measure greedy ``generate``, one question at a time, images included.

    Args:
        loaded: the model.
        questions: the first `prompts` of them are asked; the first one also once uncounted.
        prompts: how many; 0 leaves the measurement out.
        tokens: tokens generated for each.

    Returns:
        Medians over the questions: ``first_token_s``, ``next_tokens_per_s`` (None for one token)
        and ``tokens_per_s`` of the whole answer, first token included; None without questions.
    """
    chosen = questions.samples[:prompts]
    first, following, whole = [], [], []
    for turn, encoded in enumerate([*chosen[:1], *chosen]):
        clock = _Clock()
        greedy(loaded, questions, encoded, tokens, stop=False, streamer=clock)
        end, times = time.perf_counter() - clock.start, clock.times[1:]  # [0] is the question
        if turn:
            first.append(times[0])
            whole.append(len(times) / end)
            following += [(len(times) - 1) / (times[-1] - times[0])] if len(times) > 1 else []
    if not first:
        return None
    return {
        "first_token_s": statistics.median(first),
        "next_tokens_per_s": statistics.median(following) if following else None,
        "tokens_per_s": statistics.median(whole),
    }


def other_dtypes(
    loaded: LoadedModel, questions: Questions, *, prompts: int = 8, tokens: int = 32
) -> dict[str, dict[str, float | None]]:
    """Measure an unquantised model in float32 and bfloat16, whichever it is not.

    Args:
        loaded: a float model; converted in place, so that it is of no further use.
        questions: as in `generation_speed`.
        prompts: at most, and at most 4.
        tokens: generated for each.

    Returns:
        Name of the dtype -> `generation_speed`. Without those that would take half the memory.
    """
    found: dict[str, dict[str, float | None]] = {}
    model, own = loaded.model, next(loaded.model.parameters()).dtype
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for dtype in _COMPARED:
        size = sum(p.numel() for p in model.parameters()) * dtype.itemsize
        if prompts and dtype != own and size <= memory // 2:
            model.to(dtype)
            few = min(prompts, _FEW)
            speed = generation_speed(loaded, questions, prompts=few, tokens=tokens)
            if speed is not None:
                found[str(dtype).removeprefix("torch.")] = speed
    return found
