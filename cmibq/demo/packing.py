"""Pack several independent questions behind one picture.

The picture's tokens are computed once and every question attends to them and to itself only: the
mask is block-causal and every question's positions start right behind the picture. The logits
are those of the questions asked one by one; training and evaluation on a CPU cost a third.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from cmibq.demo.model import ANSWER, END, IMAGE, IMAGE_TOKENS, USER, build_tokenizer

__all__ = ["IGNORE", "PackedQuestions", "Packer"]

IGNORE: Final = -100


@dataclass(frozen=True)
class PackedQuestions:
    """One batch of packed questions: B pictures, L tokens each (padded at the right).

    Attributes:
        input_ids: int64 ``(B, L)``.
        attention_mask: float32 ``(B, 1, L, L)``, 0 where a query row may look at a key column, the
            lowest float32 elsewhere (what both eager and SDPA attention add to their scores).
        position_ids: int64 ``(B, L)``.
        labels: int64 ``(B, L)``, the token that each position must predict (already shifted), or
            `IGNORE`; only answers and their end token count.
        questions: int64 ``(B, L)``, number of the question of each label, -1 elsewhere.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    questions: torch.Tensor


class Packer:
    """Turn question and answer texts into packed batches; remembers every text it has seen.

    Args:
        tokenizer: the model's; None = the demo's.
        image_tokens: tokens of a picture.
    """

    def __init__(self, tokenizer: Any = None, image_tokens: int = IMAGE_TOKENS) -> None:
        self._tokenizer = tokenizer or build_tokenizer()
        self._known: dict[str, list[int]] = {}
        self._prefix = [self._ids(USER)[0], *[self._ids(IMAGE)[0]] * image_tokens]
        self._marks = (self._ids(ANSWER)[0], self._ids(END)[0])

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]

    def pack(self, pairs: Sequence[Sequence[tuple[str, str]]]) -> PackedQuestions:
        """Pack the questions of a batch of pictures.

        Args:
            pairs: For every picture its (question, answer) texts, without ``<image>``.

        Returns:
            What the model's ``forward`` takes (the first three fields) and what it must answer.
        """
        rows = [self._pack_row(row) for row in pairs]
        length = max(len(row[0]) for row in rows)
        fills = (self._tokenizer.pad_token_id, 0, IGNORE, -1, -2)
        table = np.empty((len(fills), len(rows), length), np.int64)
        for field, fill in enumerate(fills):
            table[field] = fill
            for number, row in enumerate(rows):
                table[field, number, : len(row[field])] = row[field]
        ids, positions, labels, questions, segments = table
        return PackedQuestions(
            torch.from_numpy(ids),
            torch.from_numpy(self._mask(segments))[:, None],
            torch.from_numpy(positions),
            torch.from_numpy(labels),
            torch.from_numpy(questions),
        )

    def _pack_row(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[int], ...]:
        start = len(self._prefix)
        ids, positions = list(self._prefix), list(range(start))
        labels, questions, segments = [IGNORE] * start, [-1] * start, [-1] * start
        answer_mark, end = self._marks
        for number, (question, answer) in enumerate(pairs):
            asked, told = [*self._ids(question), answer_mark], self._ids(answer)
            ids += [*asked, *told]
            # Each token predicts the next one; the last answer token predicts the end.
            silent, length = len(asked) - 1, len(asked) + len(told)
            labels += [*[IGNORE] * silent, *told, end]
            questions += [*[-1] * silent, *[number] * (len(told) + 1)]
            segments += [number] * length
            positions += range(start, start + length)
        return ids, positions, labels, questions, segments

    @staticmethod
    def _mask(segments: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        length = segments.shape[1]
        same = segments[:, :, None] == segments[:, None, :]
        prefix = segments[:, None, :] == -1
        causal = np.tri(length, dtype=np.bool_)
        return np.where((same | prefix) & causal, 0.0, np.finfo(np.float32).min).astype(np.float32)
