"""Pictures of tiles with their questions, seen once by frozen towers; training on their answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.demo.packing import IGNORE, Packer
from cmibq.demo.reader import answer_logits, answer_loss, tile_tokenizer
from cmibq.demo.scenes import load_pool
from cmibq.demo.tiles import Tiles, ask, compose_tiles
from cmibq.demo.tower_pair import anchor_pixels, augmenting_pixels
from cmibq.demo.training import descend

__all__ = ["COUNTS", "Album", "fit_eyes_", "grade_eyes", "make_album"]

COUNTS: Final = {"train": 8000, "dev": 500, "test": 1000}
_NEW: Final = {"train": 0.0, "dev": 0.5, "test": 0.5}
_STREAM: Final = {"train": 0, "dev": 2, "test": 3}
Eyes = Callable[["Album", Tensor], Tensor]


@dataclass(frozen=True)
class Album:
    """Pictures, their questions and what towers see in them.

    Attributes:
        split: ``"train"``, ``"dev"`` or ``"test"``.
        tiles: the pictures.
        asked: for every picture its (question, answer) texts.
        kinds: for every picture the kinds of its questions.
        anchor: float32 ``(N, 3, 16, 16)``, the anchor's pixels.
        augmenting: float32 ``(N, 3, 32, 32)``, the augmenting tower's.
        states_of: what `states` found, by tower.
    """

    split: str
    tiles: Tiles
    asked: list[list[tuple[str, str]]]
    kinds: list[list[str]]
    anchor: Tensor
    augmenting: Tensor
    states_of: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.asked)

    @property
    def scans(self) -> list[tuple[int, ...]]:
        """Return for every picture the ids of its scans."""
        return [tuple(int(i) for i in row if i >= 0) for row in self.tiles.scans]

    @torch.no_grad()
    def states(self, tower: Any, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return what every layer of a frozen tower gives, ``(N, tokens, D)`` each; run once.

        Args:
            tower: a Hugging Face vision tower.
            pixels: `anchor` or `augmenting`.
        """
        if tower not in self.states_of:
            parts = [
                tower(pixel_values=some, output_hidden_states=True).hidden_states[1:]
                for some in pixels.split(250)
            ]
            self.states_of[tower] = tuple(torch.cat(layer) for layer in zip(*parts, strict=True))
        return self.states_of[tower]


@functools.cache
def make_album(split: str, count: int = 0, seed: int = 0) -> Album:
    """Compose the pictures of a split and ask four questions about each.

    Args:
        split: ``"train"`` (scans are turned a little; no pair of `cmibq.demo.tiles.is_new`),
            ``"dev"`` or ``"test"`` (half of the pictures have such a pair).
        count: how many; 0 = `COUNTS`.
        seed: of pictures and questions.
    """
    rng = np.random.default_rng((seed, 79, _STREAM[split]))
    tiles = compose_tiles(
        load_pool(split),
        count or COUNTS[split],
        rng,
        split=split,
        new=_NEW[split],
        augment=split == "train",
    )
    questions = [ask(tiles, number, rng) for number in range(len(tiles.pixels))]
    asked = [[(q.text, q.answer) for q in some] for some in questions]
    kinds = [[q.kind for q in some] for some in questions]
    pixels = tiles.pixels
    return Album(split, tiles, asked, kinds, anchor_pixels(pixels), augmenting_pixels(pixels))


def _some(
    album: Album, row: int, kinds: Sequence[str], rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Return three of the questions about a picture."""
    told = zip(album.asked[row], album.kinds[row], strict=True)
    good = [pair for pair, kind in told if not kinds or kind in kinds]
    return [good[i] for i in rng.permutation(len(good))[:3].tolist()]


def fit_eyes_(
    eyes: nn.Module,
    reader: Any,
    album: Album,
    *,
    seed: int,
    steps: int,
    rate: float = 3e-3,
    batch: int = 32,
    kinds: Sequence[str] = (),
    image_tokens: int = 4,
    title: str = "eyes",
) -> list[float]:
    """Train what has ``requires_grad`` in place, so that a frozen reader answers.

    Args:
        eyes: called with the album and numbers of pictures, gives ``(B, image_tokens, D)``.
        reader: the language model; frozen here.
        album: training pictures.
        seed: of the order.
        steps: of `batch` pictures with three questions each.
        rate: largest learning rate.
        batch: pictures of a step.
        kinds: ask only these kinds of questions, three of them at a time; none = all.
        image_tokens: tokens of a picture.
        title: of the progress bar.

    Returns:
        The loss of every step.
    """
    packer = Packer(tile_tokenizer(), image_tokens)
    rng = np.random.default_rng((seed, 89))
    learners = [p for p in eyes.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        learners, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    reader.requires_grad_(False)

    def answer(_: int) -> tuple[Tensor, float]:
        rows = rng.integers(len(album), size=batch)
        packed = packer.pack([_some(album, row, kinds, rng) for row in rows])
        loss = answer_loss(reader, eyes(album, torch.from_numpy(rows)), packed)
        return loss, float(loss.detach())

    eyes.train()
    curve = descend(optimiser, steps, title, answer)
    eyes.eval()
    return curve


@torch.no_grad()
def grade_eyes(
    eyes: Eyes, reader: Any, album: Album, *, image_tokens: int = 4, rows: Sequence[int] = ()
) -> tuple[list[int], list[float]]:
    """Return for every question whether it is answered, and the log-loss of its answer.

    Args:
        eyes: see `fit_eyes_`.
        reader: the language model.
        album: the pictures.
        image_tokens: tokens of a picture.
        rows: numbers of the pictures; none = all.
    """
    packer, numbers = Packer(tile_tokenizer(), image_tokens), list(rows) or range(len(album))
    right, losses = list[int](), list[float]()
    for start in range(0, len(numbers), 100):
        some = list(numbers[start : start + 100])
        packed = packer.pack([album.asked[row] for row in some])
        told = packed.labels != IGNORE
        logits = answer_logits(reader, eyes(album, torch.tensor(some)), packed).float()
        cost = functional.cross_entropy(logits, packed.labels[told], reduction="none")
        miss = (logits.argmax(-1) != packed.labels[told]).float()
        at = packed.questions[told] + 8 * told.nonzero()[:, 0]
        wrong, loss = (
            torch.zeros(8 * len(some)).index_add_(0, at, x).view(-1, 8) for x in (miss, cost)
        )
        for row, number in enumerate(some):
            count = len(album.asked[number])
            right += [int(w == 0) for w in wrong[row, :count].tolist()]
            losses += loss[row, :count].tolist()
    return right, losses
