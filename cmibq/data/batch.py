"""Few, large batches: samples of like length together, each image loaded once per batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmibq.data.images import TILES, Picture, Pixels, join_pixels, load_images
from cmibq.data.prompts import Encoded
from cmibq.errors import ConfigError, DataError

__all__ = ["IGNORE", "SIDES", "Batch", "batches", "collate", "plan"]

IGNORE = -100
SIDES = ("right", "left")


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples padded to one length.

    Args:
        input_ids: int64 [B, T].
        attention_mask: int64 [B, T], 1 for tokens and 0 for padding.
        vision_mask: bool [B, T], image tokens.
        answer_mask: bool [B, T], answer tokens.
        labels: int64 [B, T], the ids of answer tokens and -100 elsewhere (not shifted).
        image_inputs: what the model takes for each of the U images, every one once; None without
            images or where they were left out.
        images: the U images.
        image_index: int64 [number of image places], which of the U images is at each place.
        samples: what the rows are.
    """

    input_ids: Tensor
    attention_mask: Tensor
    vision_mask: Tensor
    answer_mask: Tensor
    labels: Tensor
    image_inputs: tuple[Pixels, ...] | None
    images: tuple[Picture, ...]
    image_index: Tensor
    samples: tuple[Encoded, ...]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def joined(self) -> Pixels:
        """What the model takes for the U images together; empty without images."""
        return join_pixels(self.image_inputs or ())

    @property
    def pixel_values(self) -> Tensor | None:
        """The pixels of the U images; [U, 3, H, W] where all are of one size."""
        return self.joined.get("pixel_values")

    @property
    def grids(self) -> Tensor | None:
        """Patches in time, height and width at every image place, int64 [places, 3], or None.

        Raises:
            DataError: some images have a grid and others have none.
        """
        found = [self.images[i].grid for i in self.image_index.tolist()]
        known = [grid for grid in found if grid is not None]
        if known and len(known) < len(found):
            raise DataError(
                f"{len(found) - len(known)} of {len(found)} images have no grid; keep the pictures"
                " of an encoded sample when samples are joined"
            )
        return torch.tensor(known) if known else None

    def model_inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Return what the model's own forward takes, images repeated at every place.

        Args:
            dtype: of the pixels.
        """
        made = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.grids is not None:
            made["mm_token_type_ids"] = self.vision_mask.int()
        if not self.image_inputs or not len(self.image_index):
            return made
        made |= join_pixels([self.image_inputs[i] for i in self.image_index.tolist()])
        made.pop(TILES, None)
        made["pixel_values"] = made["pixel_values"].to(dtype)
        if "batch_num_images" in made:
            counts = [len(s.pictures) for s in self.samples if s.pictures]
            made["batch_num_images"] = torch.tensor(counts)
        return made


def _padded(rows: Sequence[Any], fill: Any, dtype: torch.dtype, side: str) -> Tensor:
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for i, row in enumerate(rows):
        start = 0 if side == "right" else out.shape[1] - len(row)
        out[i, start : start + len(row)] = torch.as_tensor(row, dtype=dtype)
    return out


def collate(
    samples: Sequence[Encoded], processor: Any, *, images: bool = True, side: str = "right"
) -> Batch:
    """Pad samples and load their images, each one once.

    Args:
        samples: at least one.
        processor: the model's processor.
        images: leave the images out if False (``image_inputs`` is then None).
        side: where pads go, ``"right"`` or ``"left"``.

    Raises:
        ConfigError: `side` is another.
        DataError: an image cannot be decoded.
    """
    if side not in SIDES:
        raise ConfigError(f"side is {side!r}; allowed are {', '.join(SIDES)}")
    tokenizer = getattr(processor, "tokenizer", processor)
    pad = tokenizer.pad_token_id
    ids = _padded([s.ids for s in samples], 0 if pad is None else pad, torch.int64, side)
    answer = _padded([s.answer for s in samples], False, torch.bool, side)
    places = [picture for s in samples for picture in s.pictures]
    number = {picture: i for i, picture in enumerate(dict.fromkeys(places))}
    return Batch(
        input_ids=ids,
        attention_mask=_padded([[1] * len(s) for s in samples], 0, torch.int64, side),
        vision_mask=_padded([s.vision for s in samples], False, torch.bool, side),
        answer_mask=answer,
        labels=torch.where(answer, ids, torch.tensor(IGNORE)),
        image_inputs=tuple(load_images(list(number), processor)) if number and images else None,
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
