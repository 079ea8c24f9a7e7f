"""The frozen model: features of pictures once, answers from features that went through a coder."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.quality.models import trained
from cmibq.demo.data import compose_split
from cmibq.demo.grading import to_pixel_values
from cmibq.demo.packing import IGNORE, PackedQuestions, Packer
from cmibq.demo.scenes import KINDS, Picture, compose, load_pool

__all__ = ["Frozen", "Material", "frozen", "material"]

_PICTURES = {"dev": (400, 4), "test": (1300, 4)}


@dataclass(frozen=True)
class Material:
    """Pictures that were seen once.

    Args:
        features: [N, T, D] image tokens, behind the projector.
        asked: for every picture its (question, answer) texts.
        kinds: for every picture the kinds of its questions.
        scans: for every picture the scans it shows.
        pixels: [N, 20, 20, 3] uint8.
    """

    features: Tensor
    asked: list[list[tuple[str, str]]]
    kinds: list[list[str]]
    scans: list[tuple[int, ...]]
    pixels: np.ndarray[Any, Any]


class Frozen:
    """A trained LLaVA whose weights stay as they are.

    Args:
        name: ``"demo"``, the weights that ship, or ``"small-S"``: that of `benchmarks.quality` with
            training seed S.
    """

    def __init__(self, name: str) -> None:
        self.model = _load(name).eval().requires_grad_(False)
        self.packer = Packer()
        self.embed = self.model.model.language_model.get_input_embeddings()

    @torch.no_grad()
    def see(self, pixels: Sequence[Any]) -> Tensor:
        """Return the image tokens [N, T, D] of pictures."""
        parts = []
        for start in range(0, len(pixels), 256):
            values = to_pixel_values(pixels[start : start + 256])
            found = self.model.model.get_image_features(values, return_dict=True).pooler_output
            parts.append(torch.stack(list(found)))
        return torch.cat(parts)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the mean of the word embeddings of each text, [N, D]: its task embedding."""
        found = [self.embed(torch.tensor(self.packer._ids(text))).mean(0) for text in texts]
        return torch.stack(found).detach()

    def logits(self, features: Tensor, packed: PackedQuestions) -> Tensor:
        """Return the logits where answers are told, [answer tokens, words].

        Args:
            features: [B, T, D], what the decoder reads in place of the picture's tokens.
            packed: the questions of these pictures.
        """
        words = self.embed(packed.input_ids)
        tokens = features.shape[1]
        whole = torch.cat([words[:, :1], features, words[:, 1 + tokens :]], 1)
        output = self.model.model.language_model(
            inputs_embeds=whole,
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
            use_cache=False,
        )
        found: Tensor = self.model.lm_head(output.last_hidden_state[packed.labels != IGNORE])
        return found

    def loss(self, features: Tensor, asked: Sequence[Sequence[tuple[str, str]]]) -> Tensor:
        """Return the mean cross-entropy of the answer tokens."""
        packed = self.packer.pack(asked)
        told = packed.labels[packed.labels != IGNORE]
        return functional.cross_entropy(self.logits(features, packed), told)

    @torch.no_grad()
    def costs(self, features: Tensor, asked: Sequence[tuple[str, str]]) -> Tensor:
        """Return the mean cross-entropy of the answer tokens of one question each, [B].

        Args:
            features: [B, T, D].
            asked: B questions with their answers.
        """
        packed = self.packer.pack([[pair] for pair in asked])
        told = packed.labels != IGNORE
        logits = self.logits(features, packed)
        cost = functional.cross_entropy(logits, packed.labels[told], reduction="none")
        row = told.nonzero()[:, 0]
        sums = torch.zeros(len(asked)).index_add_(0, row, cost)
        return sums / torch.bincount(row, minlength=len(asked))

    @torch.no_grad()
    def grade(
        self, features: Tensor, asked: Sequence[Sequence[tuple[str, str]]]
    ) -> tuple[list[int], list[float]]:
        """Return for every question whether it is answered, and its log-loss."""
        right, losses = list[int](), list[float]()
        for start in range(0, len(asked), 64):
            some = asked[start : start + 64]
            packed = self.packer.pack(some)
            told = packed.labels != IGNORE
            logits = self.logits(features[start : start + 64], packed)
            cost = functional.cross_entropy(logits, packed.labels[told], reduction="none")
            hit = (logits.argmax(-1) == packed.labels[told]).double()
            at = packed.questions[told] + 16 * told.nonzero()[:, 0]
            size = 16 * len(some)
            wrong = torch.zeros(size).index_add_(0, at, (1 - hit).float())
            loss = torch.zeros(size).index_add_(0, at, cost)
            for row, pairs in enumerate(some):
                for number in range(len(pairs)):
                    right.append(int(wrong[16 * row + number] == 0))
                    losses.append(float(loss[16 * row + number]))
        return right, losses


def _load(name: str) -> Any:
    if name == "demo":
        from cmibq.demo.model import load_demo_model

        return load_demo_model()
    from transformers import LlavaForConditionalGeneration

    size, seed = name.rsplit("-", 1)
    folder: Path = trained(int(seed), size)
    return LlavaForConditionalGeneration.from_pretrained(folder)


@functools.cache
def frozen(name: str) -> Frozen:
    """Return the model of a name, loaded once."""
    return Frozen(name)


def _gather(model: Frozen, pictures: Sequence[Picture]) -> Material:
    pixels = [p.pixels for p in pictures]
    asked = [[(q.text, q.answer) for q in p.questions] for p in pictures]
    kinds = [[q.kind for q in p.questions] for p in pictures]
    scans = [p.scans for p in pictures]
    return Material(model.see(pixels), asked, kinds, scans, np.stack(pixels))


@functools.cache
def material(name: str, split: str, pictures: int = 0, seed: int = 0) -> Material:
    """Return pictures of a split, seen by a model.

    Args:
        name: of the model, see `Frozen`.
        split: ``"train"`` (augmented, a question of every kind), ``"dev"`` or ``"test"``.
        pictures: how many; 0: as many as `benchmarks.quality` asks (dev and test).
        seed: of the training pictures.
    """
    if split == "train":
        pool, rng = load_pool("train"), np.random.default_rng((seed, 61))
        return _gather(
            frozen(name), [compose(pool, rng, kinds=KINDS, augment=True) for _ in range(pictures)]
        )
    shape = _PICTURES[split] if not pictures else (pictures, 4)
    return _gather(frozen(name), compose_split(split, shape))
