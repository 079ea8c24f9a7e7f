"""What a model says to a few samples: likelihoods of all tokens, and short texts.

The record of one model can be compared with that of another later, so the float model and the
quantised one need not be in memory together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmibq.data import CalibSample, Encoded, collate
from cmibq.errors import DataError
from cmibq.models import LoadedModel

__all__ = ["MOST_TOKENS", "Answers", "Caption", "ask", "random_text"]

MOST_TOKENS: Final = 2048
"""Tokens that `ask` gives to the model at most, all samples together."""
_MOST_PLACES = 256
_SHORTEST = 8
_TEXT_TOKENS = 64


@dataclass(frozen=True)
class Caption:
    """What a model writes after a prompt, greedily."""

    prompt: str
    text: str


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says to a few samples.

    Args:
        logprobs: float32 [places, vocabulary], log-likelihood of every token at each place.
        captions: texts it writes.
    """

    logprobs: Tensor
    captions: tuple[Caption, ...] = ()


def random_text(loaded: LoadedModel, count: int = 2) -> list[Encoded]:
    """Return samples of random tokens without images, for models without any data."""
    model: Any = loaded.model
    vocabulary = model.get_input_embeddings().num_embeddings
    image = loaded.adapter.image_token_id(model)
    made = []
    for number in range(count):
        ids = np.random.default_rng(number).integers(0, vocabulary, _TEXT_TOKENS)
        ids[ids == image] = 0
        told = np.arange(_TEXT_TOKENS) >= _SHORTEST
        one = CalibSample((), (), f"random {number}", {}, f"random text {number}")
        made.append(Encoded(ids, told, np.zeros(_TEXT_TOKENS, np.bool_), one))
    return made


def _inputs(loaded: LoadedModel, sample: Encoded) -> dict[str, Tensor]:
    model: Any = loaded.model
    return collate([sample], loaded.processor).model_inputs(model.dtype)


def _places(sample: Encoded, room: int) -> NDArray[np.intp]:
    """Return positions whose predictions count: before answer tokens, else anywhere in the text."""
    told = np.flatnonzero(sample.answer[1:])
    if not len(told):
        told = np.flatnonzero(~sample.vision[1:])
    return told[: max(room, 0)]


def _bounded(samples: Sequence[Encoded]) -> list[Encoded]:
    """Return the first samples of at most `MOST_TOKENS` together, at least one."""
    chosen: list[Encoded] = []
    for sample in samples:
        if chosen and sum(map(len, chosen)) + len(sample) > MOST_TOKENS:
            break
        chosen.append(sample)
    return chosen


def _caption(loaded: LoadedModel, sample: Encoded, tokens: int) -> Caption:
    """Let a model answer the last question of a sample."""
    model: Any = loaded.model
    inputs = _inputs(loaded, sample)
    start = sample.prompt_length
    for name in {"input_ids", "attention_mask", "mm_token_type_ids"} & set(inputs):
        inputs[name] = inputs[name][:, :start]
    tokenizer = loaded.processor.tokenizer
    pad = tokenizer.pad_token_id
    made = model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0 if pad is None else pad
    )
    asked = sample.ids[:start][~sample.vision[:start]]
    prompt = tokenizer.decode(asked, skip_special_tokens=True)
    text = tokenizer.decode(made[0, start:], skip_special_tokens=True)
    return Caption(" ".join(prompt.split())[-200:], " ".join(text.split()))


@torch.inference_mode()
def ask(
    loaded: LoadedModel, samples: Sequence[Encoded], *, captions: int = 2, tokens: int = 16
) -> Answers:
    """Record what a model says: a few forward passes of one sample each.

    Args:
        loaded: the model.
        samples: inputs; the first that have at most `MOST_TOKENS` tokens together are taken.
        captions: how many questions are also answered in words; samples without answer have none.
        tokens: length of those answers at most.

    Raises:
        DataError: no sample has a place to look at.
    """
    model: Any = loaded.model
    rows: list[Tensor] = []
    for sample in _bounded(samples):
        places = torch.from_numpy(_places(sample, _MOST_PLACES - sum(map(len, rows))))
        if len(places):
            logits = model(**_inputs(loaded, sample)).logits[0, places]
            rows.append(logits.float().log_softmax(-1))
    if not rows:
        raise DataError("no sample has a token to compare; give samples with answers")
    asked = [s for s in samples if s.sample.messages and s.prompt_length < len(s)]
    written = tuple(_caption(loaded, s, tokens) for s in asked[:captions])
    return Answers(torch.cat(rows), written)
