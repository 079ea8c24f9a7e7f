"""Grade the demo model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from cmibq.demo.model import IMAGE_MEAN, IMAGE_STD
from cmibq.demo.packing import IGNORE, Packer

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

__all__ = ["evaluate", "grade", "summarise", "to_pixel_values"]


def to_pixel_values(pixels: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
    """Do what the image processor does, to a batch of pictures of canvas size.

    Args:
        pixels: B pictures, uint8 ``(20, 20, 3)``.

    Returns:
        float32 ``(B, 3, 20, 20)``.
    """
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255.0
    return ((batch - IMAGE_MEAN) / IMAGE_STD).contiguous()


@torch.no_grad()
def grade(
    model: LlavaForConditionalGeneration, pictures: Sequence[tuple[Any, list[tuple[str, str]]]]
) -> tuple[list[bool], list[float]]:
    """Grade answers with the right answer fed in.

    Args:
        model: The model.
        pictures: Pixels of every picture with its (question, answer) texts.

    Returns:
        Per question: whether every answer token and the end are the most likely ones, and the
        log-loss summed over them.
    """
    packer, right, losses = Packer(), list[bool](), list[float]()
    for start in range(0, len(pictures), 64):
        batch = pictures[start : start + 64]
        packed = packer.pack([pairs for _, pairs in batch])
        logits = model(
            input_ids=packed.input_ids,
            pixel_values=to_pixel_values([pixels for pixels, _ in batch]),
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
            use_cache=False,
        ).logits.float()
        cost = functional.cross_entropy(
            logits.flatten(0, 1), packed.labels.flatten(), ignore_index=IGNORE, reduction="none"
        ).view_as(packed.labels)
        hit = logits.argmax(-1) == packed.labels
        for row, (_, pairs) in enumerate(batch):
            for number in range(len(pairs)):
                mine = packed.questions[row] == number
                right.append(bool(hit[row, mine].all()))
                losses.append(float(cost[row, mine].sum()))
    return right, losses


def summarise(
    kinds: Sequence[str], right: Sequence[bool], losses: Sequence[float]
) -> dict[str, Any]:
    """Average grades.

    Args:
        kinds: Kind of every question.
        right: Whether it was answered.
        losses: Its log-loss.

    Returns:
        ``questions``, ``accuracy``, ``nll`` and ``by_kind``.
    """
    by_kind = {
        kind: float(np.mean([hit for hit, of in zip(right, kinds, strict=True) if of == kind]))
        for kind in dict.fromkeys(kinds)
    }
    return {
        "questions": len(right),
        "accuracy": float(np.mean(right)),
        "nll": float(np.mean(losses)),
        "by_kind": by_kind,
    }


def evaluate(
    model: LlavaForConditionalGeneration, items: Sequence[dict[str, Any]], image_folder: Path
) -> dict[str, Any]:
    """Measure answer accuracy with the right answer fed in (teacher forcing).

    An answer counts when every one of its tokens and the end token is the most likely one given
    the right tokens before it; that is exactly when greedy decoding gives the answer.

    Args:
        model: The model; its training mode is restored afterwards.
        items: Items of one split, as in `make_dataset`; questions about one picture that are next
            to each other share one pass through the vision tower.
        image_folder: Folder that the items' image paths are relative to.

    Returns:
        ``questions``, ``accuracy``, ``nll`` (mean over questions of the summed answer log-loss),
        ``by_kind`` and, in the order of the items, ``correct`` and ``losses``.
    """
    from PIL import Image

    pictures: list[tuple[Any, list[tuple[str, str]]]] = []
    for name, group in groupby(items, key=lambda item: str(item["image"])):
        with Image.open(Path(image_folder) / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        talks = [item["conversations"] for item in group]
        pairs = [(talk[0]["value"].removeprefix("<image>\n"), talk[1]["value"]) for talk in talks]
        pictures.append((pixels, pairs))
    training = model.training
    model.eval()
    try:
        right, losses = grade(model, pictures)
    finally:
        model.train(training)
    summary = summarise([str(item["kind"]) for item in items], right, losses)
    return {**summary, "correct": right, "losses": losses}
