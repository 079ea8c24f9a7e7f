"""Joining encoded samples: pairs in a row (few shot), and text between two of them (interleaved).

The published code joins token rows after encoding them, so each part keeps its own template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmibq.data.base import CalibSample
from cmibq.data.prompts import Encoded
from cmibq.errors import DataError

__all__ = ["TEXT", "few_shot", "interleave", "joined", "long_texts"]

TEXT = 512
"""Tokens of a text between two samples."""


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Return several encoded samples as one: tokens, masks and images one after the other.

    Args:
        parts: at least one.

    Example:
        >>> def one(n: int) -> Encoded:
        ...     mask = np.zeros(n, np.bool_)
        ...     sample = CalibSample((), (), str(n), where=f"item {n}")
        ...     return Encoded(np.arange(n), ~mask, mask, sample)
        >>> both = joined([one(2), one(3)])
        >>> both.ids.tolist(), both.sample.where
        ([0, 1, 0, 1, 2], 'item 2 + item 3')
    """
    samples = [p.sample for p in parts]
    sample = CalibSample(
        tuple(image for s in samples for image in s.images),
        tuple(message for s in samples for message in s.messages),
        "+".join(s.id for s in samples),
        {},
        " + ".join(s.where for s in samples),
    )
    return Encoded(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.answer for p in parts]),
        np.concatenate([p.vision for p in parts]),
        sample,
        tuple(picture for p in parts for picture in p.pictures),
    )


def few_shot(samples: Sequence[Encoded], *, tail: bool) -> list[Encoded]:
    """Join samples in pairs: 0 and 1, 2 and 3, ...

    Args:
        samples: encoded samples.
        tail: keep the last one of an odd number, alone (the published code drops it).

    Raises:
        DataError: there is no pair.
    """
    if len(samples) < 2:
        raise DataError(
            f"few_shot_format joins pairs and there is {len(samples)} sample; add data or raise"
            " n_samples"
        )
    made = [joined(samples[i : i + 2]) for i in range(0, len(samples) - 1, 2)]
    return made + ([samples[-1]] if tail and len(samples) % 2 else [])


def long_texts(
    samples: Sequence[CalibSample], tokenizer: Any, count: int, where: str
) -> list[Encoded]:
    """Return the first 512 tokens of texts that are longer, all of them answers.

    Args:
        samples: texts, already shuffled.
        tokenizer: turns a text into ids.
        count: how many rows.
        where: the file, for messages.

    Raises:
        DataError: there are fewer long texts.
    """
    made: list[Encoded] = []
    for sample in samples:
        if len(made) == count:
            break
        ids: NDArray[np.int64] = np.asarray(
            tokenizer(sample.raw["text"].strip())["input_ids"], np.int64
        )
        if len(ids) > TEXT:
            yes = np.ones(TEXT, np.bool_)
            one = CalibSample((), (), sample.id, {}, sample.where)
            made.append(Encoded(ids[:TEXT], yes, ~yes, one))
    if len(made) < count:
        raise DataError(
            f"interleave_format needs {count} texts of more than {TEXT} tokens and {where} has"
            f" {len(made)}; name another text_data_path or lower n_samples"
        )
    return made


def interleave(
    samples: Sequence[Encoded], texts: Sequence[Encoded], *, published: bool
) -> list[Encoded]:
    """Put a text between the samples of each pair: 0, text, 1; 2, text, 3; ...

    Args:
        samples: encoded samples.
        texts: rows of `long_texts`, as many as `texts_needed` says.
        published: take text 0, 2, 4, ... and drop the last of an odd number of samples, as the
            published code does; otherwise text 0, 1, 2, ... and the last sample stays, alone.

    Raises:
        DataError: there is no pair.
    """
    if len(samples) < 2:
        raise DataError(
            f"interleave_format joins pairs and there is {len(samples)} sample; add data or raise"
            " n_samples"
        )
    made = [
        joined([samples[i], texts[i if published else i // 2], samples[i + 1]])
        for i in range(0, len(samples) - 1, 2)
    ]
    return made + ([samples[-1]] if not published and len(samples) % 2 else [])
