"""Calibration data on its way through the decoder: what enters each block, batch by batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from cmibq.data import Batch, Encoded, collate, load_images, plan
from cmibq.models import LoadedModel

__all__ = ["BatchStream", "Features", "enter", "float32_block", "image_features", "make_stream"]

_IMAGES_AT_ONCE = 64
_VALUES_PER_BATCH = 1 << 21
_LEAST_TOKENS = 512


@dataclass(eq=False)
class BatchStream:
    """One batch inside the decoder.

    Args:
        hidden: float32 [B, T, C], the input of the current block; replaced block by block.
        calls: keyword arguments of each block (masks, positions), float32 where float.
        keep: bool [B, T], tokens that take part in a search: all but pads, or all of them in the
            reference variant.
        real: bool [B, T], all but pads.
        vision: bool [B, T], image tokens.
        answer: bool [B, T], answer tokens. In the default variant those whose output predicts a
            token of the answer, one place before it; in the reference variant, as published, the
            tokens of the answer themselves.
        inputs: what entered each block; kept only for the gradients.
        labels: int64 [B, T], not shifted.
    """

    hidden: Tensor
    calls: list[dict[str, Any]]
    keep: Tensor
    real: Tensor
    vision: Tensor
    answer: Tensor
    inputs: list[Tensor]
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Features:
    """Vision features of every image, computed once.

    Args:
        values: [U, V, C].
        number: image file -> row of `values`.
    """

    values: Tensor
    number: Mapping[Path, int]

    def of(self, images: Sequence[Path]) -> Tensor:
        """Return the features of some images [len(images), V, C]."""
        return self.values[[self.number[i] for i in images]]


class _Reached(Exception):
    """Not an error: the last block is reached, nobody needs the rest of the forward pass."""


@torch.no_grad()
def image_features(loaded: LoadedModel, samples: Sequence[Encoded]) -> Features | None:
    """Run the vision tower once per image of the samples; None if there are none."""
    paths = list(dict.fromkeys(p for s in samples for p in s.sample.images))
    if not paths:
        return None
    parts = [
        loaded.adapter.image_features(
            loaded.model, load_images(paths[i : i + _IMAGES_AT_ONCE], loaded.processor)
        )
        for i in range(0, len(paths), _IMAGES_AT_ONCE)
    ]
    return Features(torch.cat(parts), {p: i for i, p in enumerate(paths)})


def _as_float32(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if floating else value


def run_blocks(
    decoder: nn.Module, blocks: Sequence[nn.Module], embeds: Tensor, mask: Tensor
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Run a decoder up to its last block; return what each block is called with.

    Args:
        decoder: language model without head.
        blocks: its blocks.
        embeds: [B, T, C].
        mask: int64 [B, T], 1 = token.

    Returns:
        (input [B, T, C] of each block, keyword arguments of each block).
    """
    inputs: list[Tensor] = []
    calls: list[dict[str, Any]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(kwargs)
        inputs.append(args[0] if args else named.pop("hidden_states"))
        calls.append(tree_map(_as_float32, named))
        if len(inputs) == len(blocks):
            raise _Reached

    hooks = [b.register_forward_pre_hook(note, with_kwargs=True) for b in blocks]
    try:
        with torch.no_grad(), contextlib.suppress(_Reached):
            decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs, calls


@contextlib.contextmanager
def float32_block(block: nn.Module) -> Iterator[None]:
    """Hold the parameters of a block in float32; cast back what is still a parameter after it.

    A block of a float32 model is left alone. Buffers, such as packed weights, are never cast.
    """
    before = {n: p.dtype for n, p in block.named_parameters()}
    for p in block.parameters():
        p.data = p.data.float()
    try:
        yield
    finally:
        for n, p in block.named_parameters():
            p.data = p.data.to(before.get(n, p.dtype))


def make_stream(
    loaded: LoadedModel, embeds: Tensor, batch: Batch, *, reference: bool, gradients: bool
) -> BatchStream:
    """Bring one embedded batch to the first block.

    Args:
        loaded: the model.
        embeds: [B, T, C], what enters the decoder.
        batch: masks and labels.
        reference: published variant: pads take part, answers are not shifted.
        gradients: keep the input of every block.
    """
    adapter, model = loaded.adapter, loaded.model
    blocks = [b for _, b in adapter.blocks(model)]
    inputs, calls = run_blocks(adapter.decoder(model), blocks, embeds, batch.attention_mask)
    real, answer = batch.attention_mask.bool(), batch.answer_mask
    return BatchStream(
        hidden=inputs[0].float(),
        calls=calls,
        keep=torch.ones_like(real) if reference else real,
        real=real,
        vision=batch.vision_mask,
        answer=answer if reference else torch.nn.functional.pad(answer[:, 1:], (0, 1)),
        inputs=inputs if gradients else [],
        labels=batch.labels,
    )


def enter(
    loaded: LoadedModel, samples: Sequence[Encoded], *, reference: bool, gradients: bool = False
) -> Iterator[BatchStream]:
    """Embed the samples and note what every block is called with, one batch after the other.

    Batches hold samples of like length, and about two million hidden values. The reference variant
    has one batch with all samples, padded to the longest, as published.

    Args:
        loaded: the model.
        samples: calibration samples.
        reference: published variant.
        gradients: keep the input of every block (see `BatchStream.inputs`).
    """
    features = image_features(loaded, samples)
    width = loaded.model.get_submodule(loaded.adapter.head_path).get_parameter("weight").shape[1]
    most = max(_VALUES_PER_BATCH // width, _LEAST_TOKENS)
    rows = [list(range(len(samples)))] if reference else plan([len(s) for s in samples], most)
    for row in rows:
        batch = collate([samples[i] for i in row], loaded.processor, images=False)
        seen = features.of(batch.images) if features is not None and batch.images else None
        with torch.no_grad():
            embeds = loaded.adapter.embed(loaded.model, batch, seen)
        yield make_stream(loaded, embeds, batch, reference=reference, gradients=gradients)
