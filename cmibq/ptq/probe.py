"""Timing the work on one block, on a few samples, with the code of the run itself.

What a piece of work costs is ``a + b tokens``: it is done on one sample, then on two, and on ever
more as long as it takes too short a time to tell, and the line through the last two goes on to all.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cmibq.data import Encoded
from cmibq.models import LoadedModel
from cmibq.ptq.blocks import search_block
from cmibq.ptq.distort import advance_distorted_
from cmibq.ptq.finish import At, finish_block_, rounding_of, search_config
from cmibq.ptq.journal import Journal
from cmibq.ptq.stream import BatchStream, enter, float32_block
from cmibq.ptq.task import Task
from cmibq.ptq.tower import enter_tower
from cmibq.recipe import QuantRecipe

__all__ = ["Probe", "kept", "layers_", "rounding_seconds", "scaled", "search_seconds", "timed"]

T = TypeVar("T")
_FEW, _MORE = 2, 4
_STEPS = 4
_LONG = 0.5
"""Seconds that are long enough to go on from."""


class _NoJournal(Journal):
    """Keeps nothing: a plan writes no file."""

    def write_rounded(
        self, index: int, tensors: dict[str, Tensor], errors: dict[str, float]
    ) -> None:
        """Keep nothing."""


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds of some work, and what it made."""
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def kept(streams: Sequence[BatchStream]) -> int:
    """Return the tokens that take part in a search."""
    return sum(int(s.keep.sum()) for s in streams)


def layers_(loaded: LoadedModel, blocks: Sequence[nn.Module]) -> None:
    """Leave a model some decoder blocks only."""
    decoder = loaded.adapter.decoder(loaded.model)
    setattr(decoder, loaded.adapter.layers, nn.ModuleList(blocks))


def scaled(work: Callable[[int], tuple[int, float]], most: int, total: int) -> float:
    """Return the seconds of some work on all tokens.

    Args:
        work: does it on a number of samples; returns their tokens and the seconds.
        most: samples that there are.
        total: tokens of all.

    Example:
        >>> scaled(lambda samples: (10 * samples, 0.5 + 0.1 * samples), 100, 1000)
        10.5
    """
    count, (size, took) = 1, work(1)
    while count < most:
        before = size, took
        count = min(2 * count, most)
        size, took = work(count)
        slope = max(took - before[1], 0.0) / max(size - before[0], 1)
        if took >= _LONG:
            return round(took + slope * (total - size), 6)
    return took * max(total / max(size, 1), 1.0)


@dataclass(frozen=True)
class Probe:
    """A model and samples to try things on.

    Args:
        recipe: of the run.
        loaded: the model; work on the decoder is tried while it has few blocks.
        samples: calibration samples, those of usual length first.
        blocks: of the part, all of them.
        part: ``"lm"`` or ``"vision"``.
        tokens: most tokens of a batch, as for `enter`.
        turn: numbers of the blocks that are searched: weights come from memory.
        warming: seconds by which the first calls of everything were slower.
    """

    recipe: QuantRecipe
    loaded: LoadedModel
    samples: Sequence[Encoded]
    blocks: Sequence[nn.Module]
    part: str = "lm"
    tokens: int | None = None
    turn: Iterator[int] = field(default_factory=itertools.count)
    warming: list[float] = field(default_factory=list)

    def warm(self, work: Callable[[], object]) -> float:
        """Do some work twice: the first call of everything is slower, in a run too.

        Returns:
            Seconds of the second call.
        """
        first, later = timed(work)[0], timed(work)[0]
        self.warming.append(max(first - later, 0.0))
        return later

    def streams(self, count: int, *, gradients: bool = False) -> list[BatchStream]:
        """Bring some samples to the first block."""
        some = self.samples[:count]
        if self.part == "vision":
            return list(enter_tower(self.loaded, some))
        reference = self.recipe.variant == "reference"
        return list(
            enter(self.loaded, some, reference=reference, gradients=gradients, tokens=self.tokens)
        )

    def task(self, candidates: int) -> Task:
        """Return what is done to a block."""
        config = replace(search_config(self.recipe), n_grid=candidates)
        ratios = torch.ones(1, len(self.loaded.adapter.gradient_of), dtype=torch.float64)
        lm = self.part == "lm"
        used = ratios if self.recipe.reweight and lm else None
        adapter, distort = self.loaded.adapter, self.recipe.distort and lm
        return Task(adapter, self.recipe.method, config, used, distort=distort)

    def name(self) -> str:
        """Return the name of the first block."""
        return self.loaded.adapter.blocks(self.loaded.model, self.part)[0][0]

    def search(self, streams: Sequence[BatchStream], candidates: int) -> float:
        """Return the seconds of searching a block with some candidates."""
        task, name = self.task(candidates), self.name()
        block = self.blocks[next(self.turn) % len(self.blocks)]

        def search() -> None:
            with float32_block(block, changes=False):
                found, _ = search_block(task, 0, name, block, streams)
                if task.distort:
                    advance_distorted_(task, 0, name, block, streams, found)

        return timed(search)[0]

    def finish(self, streams: Sequence[BatchStream], recipe: QuantRecipe | None = None) -> float:
        """Return the seconds of rounding and packing a copy of a block."""
        task, name = self.task(2), self.name()
        old = self.loaded.model.get_submodule(name)
        block, some = copy.deepcopy(old), [replace(s) for s in streams]
        self.loaded.model.set_submodule(name, block)
        at, journal = At(0, 0, name, block), _NoJournal(Path("unused"), "plan")
        goals = [s.hidden for s in streams]  # as good as outputs
        rest: tuple[Any, ...] = (some, journal, {0: {}}, None, goals)

        def finish() -> None:
            with float32_block(block):
                finish_block_(recipe or self.recipe, self.loaded, task, at, *rest)

        try:
            return timed(finish)[0]
        finally:
            self.loaded.model.set_submodule(name, old)


def search_seconds(probe: Probe, total: int) -> float:
    """Return the seconds of searching one block with all tokens and candidates.

    Args:
        probe: the model.
        total: tokens of all samples.
    """
    grid = probe.recipe.n_grid
    first = probe.streams(1)
    slow = probe.warm(lambda: probe.search(first, _FEW)) >= _LONG / 4
    tried = (_FEW, _MORE) if slow and not probe.recipe.races else (grid,)

    def at(candidates: int) -> float:
        def work(count: int) -> tuple[int, float]:
            streams = probe.streams(count)
            return kept(streams), probe.search(streams, candidates)

        return scaled(work, len(probe.samples), total)

    found = {n: at(n) for n in tried}
    if len(found) == 1:
        return found[grid]
    each = max(found[_MORE] - found[_FEW], 0.0) / (_MORE - _FEW)
    return found[_FEW] + each * (grid - _FEW)


def _learning_seconds(probe: Probe) -> float:
    """Return the seconds of the steps that one block takes, each on a batch of usual size."""
    count, most = 1, len(probe.samples)
    while len(streams := probe.streams(count)) == 1 and count < most:
        count = min(2 * count, most)
    few, more = (
        probe.finish(streams[:1], replace(probe.recipe, learn_steps=n)) for n in (1, 1 + _STEPS)
    )
    return max(more - few, 0.0) / _STEPS * probe.recipe.learn_steps


def rounding_seconds(probe: Probe, total: int) -> float:
    """Return the seconds of rounding and packing one block, by its outputs on all tokens.

    Args:
        probe: the model.
        total: tokens of all samples; 0 without.
    """
    recipe, how = probe.recipe, rounding_of(probe.recipe)
    if how.is_plain or not total:
        return probe.finish([])
    if how.compensate == "learned":
        start = replace(recipe, compensate="gptq", learn_steps=QuantRecipe.learn_steps)
        return rounding_seconds(replace(probe, recipe=start), total) + _learning_seconds(probe)
    # What gptq adds is the same for any number of tokens, and slow: once is enough.
    cheap = replace(recipe, compensate="none", clip=True) if recipe.compensation == "gptq" else None

    def work(count: int) -> tuple[int, float]:
        streams = probe.streams(count)
        return kept(streams), probe.finish(streams, cheap)

    made = scaled(work, len(probe.samples), total)
    if cheap is None:
        return made
    first = probe.streams(1)
    return made + max(probe.finish(first) - probe.finish(first, cheap), 0.0)
