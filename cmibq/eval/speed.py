"""How quickly a model generates."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from cmibq.data import Encoded
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
    ids = torch.from_numpy(encoded.ids[: encoded.prompt_length])[None]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if encoded.sample.images:
        pixels = questions.pixels(encoded.sample.images)
        inputs["pixel_values"] = pixels.to(model.dtype)
    pad = loaded.processor.tokenizer.pad_token_id
    made = model.generate(
        **inputs,
        max_new_tokens=tokens,
        min_new_tokens=None if stop else tokens,
        do_sample=False,
        pad_token_id=0 if pad is None else pad,
    )
    new: list[int] = made[0, ids.shape[1] :].tolist()
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
