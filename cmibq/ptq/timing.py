"""How long a run takes on this machine: a model with one block is really calibrated and searched.

Nothing is guessed from the machine's data sheet: the probe runs the code of the run itself, on two
of its samples and the first block of the model, and is scaled up by tokens, candidates and blocks.
What reads or writes whole files is timed on a part.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from cmibq.data import Encoded
from cmibq.eval.answers import MOST_TOKENS, ask
from cmibq.models import LoadedModel, check_weights, load
from cmibq.ptq.blocks import search_block
from cmibq.ptq.finish import round_
from cmibq.ptq.needs import Tokens
from cmibq.ptq.reweight import Means, add_gradients_
from cmibq.ptq.run import search_config
from cmibq.ptq.shape import Shape
from cmibq.ptq.stream import BatchStream, enter, float32_block, image_features
from cmibq.ptq.task import Task
from cmibq.ptq.verify import VERIFIED
from cmibq.recipe import QuantRecipe

__all__ = ["process_age", "seconds_of"]

T = TypeVar("T")
_HASHED = 1 << 26
_FEW, _MORE = 2, 4
_WRITTEN = 96  # MiB


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


@dataclass(frozen=True)
class _Probe:
    """What was measured on the model of one block."""

    recipe: QuantRecipe
    loaded: LoadedModel
    samples: Sequence[Encoded]
    blocks: Sequence[nn.Module]
    turn: Iterator[int]

    def streams(self, count: int, *, gradients: bool = False) -> list[BatchStream]:
        reference = self.recipe.variant == "reference"
        some, one = self.samples[:count], None if reference else 1
        return list(enter(self.loaded, some, reference=reference, gradients=gradients, tokens=one))

    def search(self, streams: Sequence[BatchStream], candidates: int) -> float:
        """Return the seconds of searching the block with some candidates."""
        config = replace(search_config(self.recipe), n_grid=candidates)
        ratios = torch.ones(1, len(self.loaded.adapter.gradient_of), dtype=torch.float64)
        used = ratios if self.recipe.reweight else None
        task = Task(self.loaded.adapter, self.recipe.method, config, used)
        name, _ = self.loaded.adapter.blocks(self.loaded.model)[0]
        block = self.blocks[next(self.turn)]  # another one each time: weights come from memory

        def search() -> None:
            with float32_block(block, changes=False):
                search_block(task, 0, name, block, streams)

        return _timed(search)[0]


def _kept(streams: Sequence[BatchStream]) -> int:
    return sum(int(s.keep.sum()) for s in streams)


def _search_seconds(probe: _Probe, total: int) -> float:
    """Return the seconds of searching one block with all tokens and candidates.

    Costs are a + b tokens + candidates (c + d tokens): four measurements, two of each.
    """
    grid = probe.recipe.n_grid
    few, more = probe.streams(1), probe.streams(2)
    if len(more) == len(few):
        return probe.search(few, grid)
    probe.search(few, _FEW)  # the first call of everything is slower
    tried = (_FEW, _MORE) if probe.recipe.effort == "full" else (grid, grid)
    at = {}
    for n in sorted(set(tried)):
        low, high = probe.search(few, n), probe.search(more, n)
        slope = max(high - low, 0.0) / max(_kept(more) - _kept(few), 1)
        at[n] = max(low - slope * _kept(few), 0.0) + slope * total
    if len(at) == 1:
        return at[grid]
    each = max(at[_MORE] - at[_FEW], 0.0) / (_MORE - _FEW)
    return at[_FEW] + each * (grid - _FEW)


def _gradient_seconds(probe: _Probe, blocks: int, tokens: Tokens) -> float:
    """Return the seconds of the gradients of all samples: blocks by tokens, head by answers."""
    if not probe.recipe.reweight:
        return 0.0
    (stream,) = probe.streams(1, gradients=True)
    size, answers = _kept([stream]), max(int((stream.labels != -100).sum()), 1)
    kept = list(stream.inputs)
    means = Means.zero(1, len(probe.loaded.adapter.gradient_of))

    def once(labels: torch.Tensor) -> float:
        stream.inputs, stream.labels = list(kept), labels
        return _timed(lambda: add_gradients_(means, probe.loaded, stream))[0]

    labels = stream.labels
    once(labels)
    whole = once(labels)
    block = once(torch.full_like(labels, -100))
    return block / size * tokens.kept * blocks + max(whole - block, 0) / answers * tokens.answers


def _calibrating(probe: _Probe, shape: Shape, tokens: Tokens) -> dict[str, float]:
    """Return the seconds of images, of bringing samples to the first block, and of gradients."""
    loaded, some = probe.loaded, probe.samples[:1]
    blocks = probe.blocks
    made = {}
    looked = min(len({p for s in probe.samples for p in s.sample.images}), tokens.images)
    if looked:
        image_features(loaded, [probe.samples[:1]])
        seconds, _ = _timed(lambda: image_features(loaded, [probe.samples]))
        made["images"] = seconds / looked * tokens.images
    times = []
    for count in (1, 2):
        _layers(loaded, blocks[:count])
        probe.streams(1)
        times.append(_timed(lambda: probe.streams(1))[0])
    _layers(loaded, blocks[:1])
    share = tokens.kept / max(sum(map(len, some)), 1)
    forward = max(times[1] - times[0], 0.0) * shape.blocks
    image = made.get("images", 0.0) / max(tokens.images, 1)
    made["samples"] = forward * share + max(times[0] - image, 0.0) * share
    made["gradients"] = _gradient_seconds(probe, shape.blocks, tokens)
    return made


def _layers(loaded: LoadedModel, blocks: Sequence[nn.Module]) -> None:
    """Leave a model some blocks only."""
    decoder = loaded.adapter.decoder(loaded.model)
    setattr(decoder, loaded.adapter.layers, nn.ModuleList(blocks))


def _verifying(probe: _Probe, shape: Shape, size: float) -> float:
    """Return the seconds of asking the float model and the result, and of opening the result.

    Args:
        probe: the model.
        shape: of the whole one.
        size: seconds of reading the result.
    """
    some, found = probe.samples[:1], []
    for captions in (0, 1):
        times: list[float] = []
        for count in (1, min(2, len(probe.blocks))):
            _layers(probe.loaded, probe.blocks[:count])
            once = functools.partial(ask, probe.loaded, some, captions=captions)
            once()
            times.append(_timed(once)[0])
        found.append(times[0] + max(times[1] - times[0], 0.0) * (shape.blocks - 1))
    plain, told = found
    samples = min(max(MOST_TOKENS // max(len(some[0]), 1), 1), VERIFIED)
    return 2 * (samples * plain + 2 * max(told - plain, 0.0)) + size


def _hash_rate(path: Path) -> float:
    """Return the seconds of hashing a byte of a file."""
    with open(path, "rb") as file:
        data = file.read(_HASHED)
    seconds, _ = _timed(lambda: hashlib.sha256(data).digest())
    return seconds / max(len(data), 1)


def _write_rate(folder: Path) -> float:
    """Return the seconds of writing a byte that lasts."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    data = os.urandom(1 << 20) * _WRITTEN

    def write() -> None:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    return _timed(write)[0] / len(data)


def process_age() -> float:
    """Return the seconds since this process began: what starting and importing takes."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def seconds_of(
    recipe: QuantRecipe, path: Path, samples: Sequence[Encoded], shape: Shape, tokens: Tokens
) -> dict[str, float]:
    """Return the seconds of each part of a run.

    Args:
        recipe: what to do.
        path: model folder.
        samples: calibration samples.
        shape: of the model.
        tokens: of all samples.
    """
    weights = max(path.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    made = {}
    made["load"], loaded = _timed(lambda: load(path))
    blocks = [b for _, b in loaded.adapter.blocks(loaded.model)]
    inside = f"{loaded.adapter.blocks(loaded.model)[0][0]}."
    first = [n for n in loaded.adapter.targets(loaded.model) if n.startswith(inside)]
    made["load"] += _timed(lambda: check_weights(loaded.model, first))[0] * shape.blocks
    turn = itertools.cycle(range(len(blocks)))
    order = sorted(samples, key=len)
    middle = len(order) // 2  # samples of usual length
    probe = _Probe(recipe, loaded, order[middle : middle + 2] or order[-2:], blocks, turn)
    if samples:
        made |= _calibrating(probe, shape, tokens)
        made["search"] = _search_seconds(probe, tokens.kept) * shape.blocks
    if recipe.output_path:
        size = shape.packed(recipe) * shape.blocks + shape.rest()
        size = shape.file_bytes if recipe.pseudo_quant else size
        if recipe.verify and samples:
            made["verify"] = _verifying(probe, shape, size * _hash_rate(weights))
        with float32_block(blocks[0], changes=False):
            seconds, _ = _timed(lambda: round_(recipe, loaded, first))
        made["round and pack"] = seconds * shape.blocks
        if samples and len(blocks) > 1:  # the first pass through packed layers, for the probe
            _layers(loaded, blocks[:2])
            image = made.get("images", 0.0) / max(tokens.images, 1)
            seconds, found = _timed(lambda: probe.streams(2))
            made["probe"] = max(seconds - len(found) * image, 0.0) * shape.blocks
        made["write"] = size * (_write_rate(Path(recipe.output_path)) + _hash_rate(weights))
    return made
