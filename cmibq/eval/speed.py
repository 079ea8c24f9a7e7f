"""How quickly a model generates."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from cmibq.data import Encoded, collate
from cmibq.eval.footprint import median_rate
from cmibq.eval.questions import Questions
from cmibq.models import LoadedModel

__all__ = ["generation_rate", "greedy"]


@torch.inference_mode()
def greedy(
    loaded: LoadedModel, questions: Questions, encoded: Encoded, tokens: int, *, stop: bool = True
) -> list[int]:
    """Answer one question with the model's own ``generate``, greedily.

    Args:
        loaded: the model.
        questions: where pixels come from.
        encoded: the question; its answer is not shown to the model.
        tokens: how many tokens to generate at most.
        stop: stop at the end token; otherwise exactly `tokens` are made.

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
    )
    new: list[int] = made[0, batch.input_ids.shape[1] :].tolist()
    return new


def generation_rate(
    loaded: LoadedModel, questions: Questions, *, prompts: int = 8, tokens: int = 32
) -> float | None:
    """Return tokens per second of greedy ``generate``, one question at a time, images included.

    Args:
        loaded: the model.
        questions: the first `prompts` of them are asked.
        prompts: how many; 0 leaves the measurement out.
        tokens: tokens generated for each.

    Returns:
        The median over the questions, or None if there are none.
    """
    chosen = questions.samples[:prompts]
    if not chosen:
        return None

    def ask(encoded: Encoded) -> int:
        return len(greedy(loaded, questions, encoded, tokens, stop=False))

    return median_rate([partial(ask, encoded) for encoded in chosen])
