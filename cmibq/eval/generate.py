"""Answers as a model generates them, greedily unless told otherwise, in padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from cmibq.data import CalibSample, Encoded, Message, collate, encode, plan
from cmibq.models import LoadedModel

__all__ = ["generate_answers", "prompt", "prompts"]

_MAX_TOKENS = 1 << 14
_ANY = "x"  # an answer, so that a question can be encoded; cut off again


def prompt(encoded: Encoded) -> Encoded:
    """Return an encoded conversation up to its last answer."""
    asked = slice(encoded.prompt_length)
    return replace(
        encoded,
        ids=encoded.ids[asked],
        answer=encoded.answer[asked],
        vision=encoded.vision[asked],
    )


def prompts(samples: Sequence[CalibSample], processor: Any) -> list[Encoded]:
    """Encode questions that have no answer yet.

    Args:
        samples: conversations that end with a question.
        processor: the model's processor.

    Raises:
        DataError: an image cannot be read, the template does not fit; names the item.
    """
    told = Message("assistant", _ANY)
    asked = [replace(s, messages=(*s.messages, told)) for s in samples]
    return [prompt(e) for e in encode(asked, processor)]


@torch.inference_mode()
def generate_answers(
    loaded: LoadedModel,
    samples: Sequence[Encoded],
    *,
    batch_size: int = 1,
    max_new_tokens: int = 16,
    progress: bool = True,
    **settings: Any,
) -> list[str]:
    """Let the model's own ``generate`` answer questions.

    Args:
        loaded: the model.
        samples: encoded questions, see `prompt`.
        batch_size: questions at once; they are padded at the left.
        max_new_tokens: most tokens of an answer.
        progress: whether to show a progress bar.
        settings: further settings of ``generate``.

    Returns:
        One text per question, without special tokens, in the order of `samples`.
    """
    from tqdm.auto import tqdm

    model: Any = loaded.model
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    pad = tokenizer.pad_token_id
    answers = [""] * len(samples)
    bar = tqdm(total=len(samples), desc="answers", unit="q", disable=not progress, leave=False)
    with bar:
        for rows in plan([len(s) for s in samples], _MAX_TOKENS, batch_size):
            batch = collate([samples[i] for i in rows], loaded.processor, side="left")
            made = model.generate(
                **batch.model_inputs(model.dtype),
                max_new_tokens=max_new_tokens,
                pad_token_id=0 if pad is None else pad,
                **({"do_sample": False} | settings),
            )
            new = made[:, batch.input_ids.shape[1] :]
            texts = tokenizer.batch_decode(new, skip_special_tokens=True)
            for i, text in zip(rows, texts, strict=True):
                answers[i] = text.strip()
            bar.update(len(rows))
    return answers
