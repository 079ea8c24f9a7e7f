"""How much memory and disk a run needs, from shapes and token counts; no weight is read.

The same arithmetic makes the plan that ``cmibq plan`` shows and keeps ``max_memory``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cmibq.data import Encoded
from cmibq.ptq.blocks import pass_sizes
from cmibq.ptq.shape import Shape
from cmibq.ptq.stream import batch_rows
from cmibq.recipe import QuantRecipe

__all__ = ["SLACK", "WINDOW", "Needs", "Tokens", "count_tokens", "needs"]

WINDOW = 64 << 20
"""Bytes for pages of files that are being read."""
SLACK = 64 << 20  # heap that is free but not given back, buffers of libraries
_HEAD_TOKENS = 256
_GRADIENT_STATES, _GRADIENT_INNER = 12, 7
_FORWARD_STATES, _FORWARD_INNER = 8, 4


@dataclass(frozen=True)
class Tokens:
    """Calibration data in numbers.

    Args:
        batches: (samples, tokens of the longest) of each batch.
        kept: tokens that take part in a search.
        longest: tokens of the longest sample.
        answers: tokens with a loss.
        images: different images.
        features: image tokens of one image.
    """

    batches: tuple[tuple[int, int], ...]
    kept: int
    longest: int
    answers: int
    images: int
    features: int

    @property
    def padded(self) -> int:
        """Tokens with pads."""
        return sum(b * t for b, t in self.batches)

    @property
    def largest(self) -> int:
        """Tokens of the largest batch."""
        return max((b * t for b, t in self.batches), default=0)


def count_tokens(
    samples: Sequence[Encoded], width: int, *, reference: bool, tokens: int | None = None
) -> Tokens:
    """Return the numbers of some samples; see `batch_rows` for the arguments."""
    lengths = [len(s) for s in samples]
    rows = batch_rows(lengths, width, reference=reference, tokens=tokens) if samples else []
    batches = tuple((len(row), max(lengths[i] for i in row)) for row in rows)
    paths = [p for s in samples for p in s.sample.images]
    marks = sum(int(s.vision.sum()) for s in samples)
    return Tokens(
        batches,
        sum(b * t for b, t in batches) if reference else sum(lengths),
        max(lengths, default=0),
        sum(int(s.answer.sum()) for s in samples),
        len(set(paths)),
        -(-marks // len(paths)) if paths else 0,
    )


@dataclass(frozen=True)
class Needs:
    """Bytes that a run needs.

    Args:
        base: what the process takes before it begins.
        model: weights, mapped from their files.
        kept: result in memory when the last block is in work; weights give way to it.
        rest: weights that are not quantised.
        phases: phase -> what it needs beside them, without tensors of all tokens.
        stored: (what, bytes) of tensors of all tokens, in the order in which they are made.
        result: (what, bytes) on disk in the end.
    """

    base: int
    model: int
    kept: int
    rest: int
    phases: dict[str, int]
    stored: tuple[tuple[str, int], ...]
    result: tuple[tuple[str, int], ...]

    @property
    def smallest(self) -> int:
        """Least memory that works: tensors of all tokens in files, weights read when needed."""
        write = self.kept + self.rest + self.phases["write"]  # weights are copied for that
        work = self.kept + max(size for name, size in self.phases.items() if name != "write")
        return self.base + max(work, write) + WINDOW + SLACK

    def room(self, cap: int) -> int:
        """Return how many bytes of tensors of all tokens may stay in memory under a cap."""
        return max(cap - self.smallest - self.model, 0)

    def scratch(self, room: int | None) -> int:
        """Return the bytes that go to files."""
        if room is None:
            return 0
        held = filed = 0
        for _, size in self.stored:
            held, filed = (held + size, filed) if held + size <= room else (held, filed + size)
        return filed

    def peak(self, room: int | None = None, cap: int | None = None) -> int:
        """Return the largest resident memory."""
        stored = sum(size for _, size in self.stored) - self.scratch(room)
        work = self.model + max(self.phases["search"] + stored, *self.phases.values())
        peak = self.base + max(work, self.kept + 2 * self.rest + self.phases["write"])
        return peak if cap is None else min(peak, cap)


def _phases(recipe: QuantRecipe, shape: Shape, tokens: Tokens) -> dict[str, int]:
    block = 4 * shape.block_params if shape.itemsize < 4 else 0
    states, inner, batch = 4 * shape.hidden, 4 * shape.inner, tokens.largest
    masks = sum(b * t * t for b, t in tokens.batches)
    forward = batch * (_FORWARD_STATES * states + _FORWARD_INNER * inner)
    images = min(tokens.images, 64) * (tokens.features + 1) * shape.tower * shape.itemsize * 4
    made = {"images": min(images, 256 << 20), "search": 0, "pack": 0}
    if recipe.reweight:
        inputs = shape.blocks * batch * shape.hidden * shape.itemsize
        head = 3 * 4 * min(_HEAD_TOKENS, tokens.answers) * shape.vocabulary
        backward = batch * (_GRADIENT_STATES * states + _GRADIENT_INNER * inner)
        made["gradients"] = inputs + max(block + backward, head) + masks
    # A candidate: scaled weights, rounded weights and those divided again, in float32.
    weights = max((3 * 4 * w for _, _, w, _ in shape.groups), default=0)
    if tokens.batches:
        made["search"] = block + weights + forward + masks
    largest = max(n * k for n, k in shape.layers)
    made["pack"] = block + 3 * 4 * largest
    made["write"] = (256 << 20) if recipe.output_path else 0
    made["write"] = min(made["write"], shape.file_bytes)
    return made


def _kept(recipe: QuantRecipe, shape: Shape) -> int:
    """Return the bytes of the quantised layers in memory."""
    if not recipe.output_path:
        return 0
    if recipe.pseudo_quant:
        return shape.blocks * shape.block_params * shape.itemsize
    return shape.blocks * shape.packed(recipe)


def _stored(shape: Shape, tokens: Tokens) -> list[tuple[str, int]]:
    if not tokens.batches:
        return []
    widths = [k for _, k, _, _ in shape.groups]
    runs = [r for _, _, _, r in shape.groups]
    passes = pass_sizes(widths, tokens.kept)
    ends = list(itertools.accumulate(passes))
    most, others = 0, sum(shape.others)
    for number, (end, count) in enumerate(zip(ends, passes, strict=True)):
        rows = sum(widths[end - count : end]) + (0 if number else others)
        target = shape.hidden if any(runs[end - count : end]) else 0
        most = max(most, rows + target)
    states = 4 * shape.hidden * tokens.padded
    return [
        ("hidden states", states),
        ("outputs of a block", states),
        ("inputs of layers", 4 * most * tokens.kept),
    ]


def needs(recipe: QuantRecipe, shape: Shape, tokens: Tokens, base: int) -> Needs:
    """Return what a run needs.

    Args:
        recipe: what to do.
        shape: of the model.
        tokens: of the calibration data.
        base: resident bytes of a process that has loaded its libraries.
    """
    scales = sum(4 * k for _, k, _, _ in shape.groups) * shape.blocks
    result = []
    if recipe.output_path:
        if recipe.pseudo_quant:
            result.append(("model", shape.file_bytes))
        else:
            result.append(("packed layers", shape.packed(recipe) * shape.blocks))
            result.append(("other weights", shape.rest()))
    if recipe.run_process and recipe.scale_path:
        result.append(("scales", scales))
    return Needs(
        base,
        shape.model,
        _kept(recipe, shape),
        shape.rest() if recipe.output_path else 0,
        _phases(recipe, shape, tokens),
        tuple(_stored(shape, tokens)),
        tuple(result),
    )
