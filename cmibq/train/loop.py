"""One pass of training: accumulation, precision, clipping, records, checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ConfigError, DataError
from cmibq.train.checkpoints import Checkpoints
from cmibq.train.journal import Journal
from cmibq.train.peers import average_, world

__all__ = ["Found", "Loop", "Parts", "StepRecord", "moved", "run_steps"]

_BEYOND = 1e12  # no weight or logarithm is as large

StepRecord = dict[str, float]
Found = Mapping[str, Tensor | None]


@dataclass(frozen=True)
class Loop:
    """How a stage runs; the defaults are those of a plain loop.

    Args:
        accumulate: batches per optimiser step; their losses are averaged.
        clip_norm: largest norm of all gradients together; 0 = as they are.
        autocast: data type of matrix products, such as ``torch.bfloat16``; None = as they are.
        scheduler: of the learning rate; stepped after every optimiser step.
        steps: optimiser steps of the whole stage, for the schedule; 0 = those of this pass.
        start: optimiser steps of the stage before this pass.
        checkpoints: where to save, and to resume from; None = nowhere.
        journal: gets the terms of every step; None = none.
        on_step: called after every step with its number and its terms.
        watch: called in every step with its number and what the layer found in its last batch.
        gradients: called when gradients are whole, before they are clipped; returns numbers for
            the record.

    Raises:
        ConfigError: a number is out of range.
    """

    accumulate: int = 1
    clip_norm: float = 0.0
    autocast: torch.dtype | None = None
    scheduler: Any = None
    steps: int = 0
    start: int = 0
    checkpoints: Checkpoints | None = None
    journal: Journal | None = None
    on_step: Callable[[int, StepRecord], None] | None = None
    watch: Callable[[int, Found], None] | None = None
    gradients: Callable[[], StepRecord] | None = None

    def __post_init__(self) -> None:
        for name, least in (("accumulate", 1), ("steps", 0), ("start", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; allowed are numbers from {least}"
                )
        if not (math.isfinite(self.clip_norm) and self.clip_norm >= 0):
            raise ConfigError(f"clip_norm is {self.clip_norm}; allowed are numbers from 0")

    def steps_of(self, batches: int) -> int:
        """Return the optimiser steps of the stage, given the batches of this pass."""
        return self.steps or self.start + max(-(-batches // self.accumulate), 1)

    def precision(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Return the context that a forward pass runs in."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.autocast)


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch on the device: tensors, and dictionaries, lists and tuples of them."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=device.type == "cuda")
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        return type(batch)(moved(value, device) for value in batch)
    return batch


def _remaining(dataloader: Iterable[Any], done: int) -> Iterator[Any]:
    """Yield the batches after the first `done`, without making those where that can be told."""
    start = getattr(dataloader, "starting_at", None)
    yield from start(done) if start is not None else itertools.islice(dataloader, done, None)


def _chunks(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(batches, size)):
        yield chunk


class _Records:
    """Terms of steps, on the device until somebody needs them: reading them makes a GPU wait."""

    def __init__(self, loop: Loop, stage: int, device: torch.device) -> None:
        self.loop, self.stage = loop, stage
        self.done: list[StepRecord] = []
        self.waiting: list[tuple[int, list[str], Tensor, dict[str, float]]] = []
        self.often = device.type == "cpu"

    def add(self, step: int, terms: Mapping[str, Tensor], more: dict[str, float]) -> None:
        values = torch.stack([v.detach().float() for v in terms.values()])
        if world() > 1:
            torch.distributed.all_reduce(values)
            values = values / world()
        self.waiting.append((step, list(terms), values, more))
        if self.often or len(self.waiting) >= 20:
            self.flush()

    def flush(self) -> None:
        """Read what waits, write it, tell it.

        Raises:
            DataError: a loss is NaN or infinite.
        """
        fresh = []
        for step, names, values, more in self.waiting:
            told = dict(zip(names, values.tolist(), strict=True)) | more
            fresh.append((step, told))
            if not math.isfinite(told["total"]):
                terms = ", ".join(f"{name} {value:.4g}" for name, value in told.items())
                raise DataError(
                    f"the loss of step {step} of stage {self.stage} is not finite ({terms}); look"
                    " for NaN in the data, or lower the learning rate, or set clip_norm"
                )
        self.waiting.clear()
        self.done += [told for _, told in fresh]
        if self.loop.journal is not None:
            lines = [{"stage": self.stage, "step": step, **told} for step, told in fresh]
            self.loop.journal.write(lines)
        for step, told in fresh:
            if self.loop.on_step is not None:
                self.loop.on_step(step, told)


@dataclass(frozen=True)
class Parts:
    """What a stage trains and saves.

    Args:
        stage: 1 or 2.
        modules: whose trained parameters and buffers are saved, by name.
        optimiser: of all that is trained.
        wrapped: the model as it was given, perhaps wrapped by DDP or FSDP.
    """

    stage: int
    modules: Mapping[str, nn.Module]
    optimiser: torch.optim.Optimizer
    wrapped: nn.Module | None = None


def _resume(loop: Loop, parts: Parts) -> int:
    """Return the optimiser steps of this stage that are done, with everything as it was then."""
    place = None if loop.checkpoints is None else loop.checkpoints.place()
    if loop.checkpoints is None or place is None or place[0] != parts.stage:
        return loop.start
    if place[1] <= loop.start:
        return loop.start
    loop.checkpoints.load(parts.modules, parts.optimiser, loop.scheduler)
    return place[1]


def _update(loop: Loop, parts: Parts) -> StepRecord:
    """Average gradients over processes, clip, step, forget them; return what is told of them."""
    trained = [p for group in parts.optimiser.param_groups for p in group["params"]]
    average_(trained, parts.wrapped)
    told = {} if loop.gradients is None else loop.gradients()
    if loop.clip_norm:
        torch.nn.utils.clip_grad_norm_(trained, loop.clip_norm)
    parts.optimiser.step()
    parts.optimiser.zero_grad(set_to_none=True)
    if loop.scheduler is not None:
        loop.scheduler.step()
    return told


@contextlib.contextmanager
def _diverging(parts: Parts, step: int) -> Iterator[None]:
    """Say so where a forward fails because the steps before it have spoilt a parameter.

    Raises:
        DataError: a trained parameter is beyond any use: NaN, infinite, or near it.
    """
    try:
        yield
    except ValueError as error:
        trained = [p for group in parts.optimiser.param_groups for p in group["params"]]
        if all(bool((p.abs() < _BEYOND).all()) for p in trained):
            raise
        raise DataError(
            f"parameters are NaN, infinite or above {_BEYOND:g} in step {step} of stage"
            f" {parts.stage}: the training diverged; lower the learning rate, or set clip_norm"
        ) from error


def run_steps(
    loop: Loop,
    parts: Parts,
    dataloader: Iterable[Any],
    device: torch.device,
    begin: Callable[[int], dict[str, float]],
    losses: Callable[[Any], tuple[Tensor, Mapping[str, Tensor], Found]],
) -> list[StepRecord]:
    """Make one pass over the data.

    Args:
        loop: how.
        parts: what is trained.
        dataloader: the batches.
        device: to run on.
        begin: told the number of an optimiser step before it; returns numbers for its record.
        losses: (batch) -> what to minimise, terms for the record, ``total`` among them, and what
            the layer found.

    Returns:
        The record of every step that was done now, or read from the journal if it was done before.

    Raises:
        DataError: a loss is not finite, or the checkpoint is of something else.
    """
    step = _resume(loop, parts)
    records = _Records(loop, parts.stage, device)
    if loop.journal is not None:
        loop.journal.rewind(parts.stage, step)
    batches = _remaining(dataloader, (step - loop.start) * loop.accumulate)
    parts.optimiser.zero_grad(set_to_none=True)
    for chunk in _chunks(batches, loop.accumulate):
        more, sums = begin(step), dict[str, Tensor]()
        for batch in chunk:
            with loop.precision(device), _diverging(parts, step):
                loss, terms, found = losses(moved(batch, device))
            if device.type == "cpu" and not bool(torch.isfinite(loss.detach())):
                records.add(step, {**terms, "total": loss}, more)
            (loss / len(chunk)).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / len(chunk)
        more |= _update(loop, parts)
        records.add(step, sums, more)
        if loop.watch is not None:
            loop.watch(step, found)
        step += 1
        if loop.checkpoints is not None and loop.checkpoints.due(step):
            records.flush()
            loop.checkpoints.save(parts.stage, step, parts.modules, parts.optimiser, loop.scheduler)
    records.flush()
    return records.done
