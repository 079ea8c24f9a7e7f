"""Few, large batches: samples of like length together, each image loaded once per batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmibq.data.base import open_image
from cmibq.data.prompts import Encoded
from cmibq.errors import DataError

__all__ = ["IGNORE", "Batch", "batches", "collate", "load_images", "plan"]

IGNORE = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples padded at the right to one length.

    Args:
        input_ids: int64 [B, T].
        attention_mask: int64 [B, T], 1 for tokens and 0 for padding.
        vision_mask: bool [B, T], image tokens.
        answer_mask: bool [B, T], answer tokens.
        labels: int64 [B, T], the ids of answer tokens and -100 elsewhere (not shifted).
        pixel_values: float32 [U, 3, H, W], every image of the batch once; None without images.
        images: the U image files.
        image_index: int64 [number of image places], which of the U images is at each place.
        samples: what the rows are.
    """

    input_ids: Tensor
    attention_mask: Tensor
    vision_mask: Tensor
    answer_mask: Tensor
    labels: Tensor
    pixel_values: Tensor | None
    images: tuple[Path, ...]
    image_index: Tensor
    samples: tuple[Encoded, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def load_images(paths: Sequence[Path], processor: Any) -> Tensor:
    """Load images through the processor: float32 [n, 3, H, W].

    Raises:
        DataError: an image cannot be decoded or comes out of another size than the first.
    """
    pictures = []
    for path in paths:
        with open_image(path) as image:
            pictures.append(image.convert("RGB"))
    made = [torch.as_tensor(p) for p in processor.image_processor(pictures)["pixel_values"]]
    for path, pixels in zip(paths, made, strict=True):
        if pixels.shape != made[0].shape:
            raise DataError(
                f"image {str(path)!r} is {tuple(pixels.shape)} after processing, {str(paths[0])!r}"
                f" is {tuple(made[0].shape)}; only processors that give one size are supported"
            )
    return torch.stack(made).float()


def _padded(rows: Sequence[Any], fill: Any, dtype: torch.dtype) -> Tensor:
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.as_tensor(row, dtype=dtype)
    return out


def collate(samples: Sequence[Encoded], processor: Any, *, images: bool = True) -> Batch:
    """Pad samples at the right and load their images, each one once.

    Args:
        samples: at least one.
        processor: the model's processor.
        images: leave the images out if False (``pixel_values`` is then None).

    Raises:
        DataError: an image cannot be decoded.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    pad = tokenizer.pad_token_id
    ids = _padded([s.ids for s in samples], 0 if pad is None else pad, torch.int64)
    answer = _padded([s.answer for s in samples], False, torch.bool)
    places = [path for s in samples for path in s.sample.images]
    number = {path: i for i, path in enumerate(dict.fromkeys(places))}
    return Batch(
        input_ids=ids,
        attention_mask=_padded([[1] * len(s) for s in samples], 0, torch.int64),
        vision_mask=_padded([s.vision for s in samples], False, torch.bool),
        answer_mask=answer,
        labels=torch.where(answer, ids, torch.tensor(IGNORE)),
        pixel_values=load_images(list(number), processor) if number and images else None,
        images=tuple(number),
        image_index=torch.tensor([number[p] for p in places], dtype=torch.int64),
        samples=tuple(samples),
    )


def plan(
    lengths: Sequence[int], max_tokens: int, max_samples: int | None = None
) -> list[list[int]]:
    """Group samples of like length so that a batch holds at most `max_tokens` with padding.

    Args:
        lengths: tokens per sample.
        max_tokens: largest batch, in tokens; one longer sample makes a batch of its own.
        max_samples: largest batch, in samples.

    Returns:
        Indices per batch, short samples first.

    Example:
        >>> plan([5, 2, 9, 2], 10)
        [[1, 3], [0], [2]]
    """
    made: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        room = made and (len(made[-1]) + 1) * lengths[i] <= max_tokens
        if room and (max_samples is None or len(made[-1]) < max_samples):
            made[-1].append(i)
        else:
            made.append([i])
    return made


def batches(
    samples: Sequence[Encoded],
    processor: Any,
    *,
    max_tokens: int = 8192,
    max_samples: int | None = None,
    images: bool = True,
) -> Iterator[Batch]:
    """Yield all samples in few batches, short samples first; see `plan` and `collate`."""
    for rows in plan([len(s) for s in samples], max_tokens, max_samples):
        yield collate([samples[i] for i in rows], processor, images=images)
