"""The second stream of a search with ``distort``: inputs as already quantised layers make them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from cmibq.models import Adapter
from cmibq.nn import prepare_
from cmibq.ptq.capture import Recording, record
from cmibq.ptq.journal import BlockFound
from cmibq.ptq.stream import BatchStream
from cmibq.ptq.task import Task
from cmibq.quant import fake_quantize_weight
from cmibq.search import LinearGroup, apply_scales_, weight_spec

__all__ = ["advance_distorted_", "apply_found_", "record_distorted"]


def apply_found_(adapter: Adapter, name: str, block: nn.Module, found: BlockFound) -> None:
    """Fuse the scales of a block into it."""
    modules = {f"{name}.{n}": m for n, m in block.named_modules() if n}
    for group in adapter.groups(name, block):
        if group.name in found:
            apply_scales_(modules, group, found[group.name].result.scales)


def _quantised(task: Task, name: str, block: nn.Module, found: BlockFound) -> nn.Module:
    """Return a copy of a block with the scales found so far and all linear layers quantised."""
    made = copy.deepcopy(block)
    apply_found_(task.adapter, name, made, found)
    spec = weight_spec(task.config)
    names = [n for n, m in made.named_modules() if isinstance(m, nn.Linear)]
    if task.config.act_bits is not None:
        prepare_(made, dict.fromkeys(names, spec), task.config.act_bits)
        return made
    for n in names:
        weight = made.get_parameter(f"{n}.weight")
        weight.copy_(fake_quantize_weight(weight, spec, name=f"{name}.{n}"))
    return made


def _second(streams: Sequence[BatchStream]) -> list[BatchStream]:
    """Return the streams with the distorted input in place of the float one."""
    return [replace(s, hidden=s.hidden if s.distorted is None else s.distorted) for s in streams]


@torch.no_grad()
def record_distorted(
    task: Task,
    index: int,
    name: str,
    block: nn.Module,
    streams: Sequence[BatchStream],
    group: LinearGroup,
    found: BlockFound,
    owners: Mapping[str, int],
) -> Recording:
    """Run a block on the distorted inputs and note what a group and its inspected module are given.

    Args:
        task: what to do.
        index: number of the block.
        name: its name in the model.
        block: the block, float; left as it was.
        streams: all batches.
        group: which group.
        found: scales of the groups before it. None yet: the block runs as it is, as published;
            otherwise these are applied and all its linear layers quantised.
        owners: first layer of a group -> process that searches it.

    References:
        Li et al., "MBQ", the published code's ``distort`` (CVPR 2025).
    """
    made = _quantised(task, name, block, found) if found else block
    modules = {f"{name}.{n}": m for n, m in made.named_modules() if n}
    layer, called = group.linears[0], {group.inspect: modules[group.inspect]}
    wanted = {layer: modules[layer]}
    return record(made, index, _second(streams), wanted, called, task.place, owners)[0]


@torch.no_grad()
def advance_distorted_(
    task: Task,
    index: int,
    name: str,
    block: nn.Module,
    streams: Sequence[BatchStream],
    found: BlockFound,
) -> None:
    """Move the distorted inputs behind a block: through it with its scales, quantised."""
    made = _quantised(task, name, block, found)
    outputs = record(made, index, _second(streams), {}, {}, task.place)[1]
    for stream, out in zip(streams, outputs, strict=True):
        stream.distorted = out
