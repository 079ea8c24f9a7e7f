"""What one block computes on the calibration data, and what it would with other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cmibq.ptq.stream import BatchStream
from cmibq.quant import fake_quantize_tokens
from cmibq.search import BlockRunner, LinearGroup

__all__ = ["Recording", "first", "masked", "record", "runner"]

_Call = tuple[tuple[Any, ...], dict[str, Any]]


def first(output: Any) -> Tensor:
    """Return the tensor of a module that may return a tuple."""
    made: Tensor = output[0] if isinstance(output, tuple) else output
    return made


def masked(t: Tensor, keep: Tensor) -> Tensor:
    """Return the kept tokens [t, C] of [B, T, C]; a view if all are kept."""
    return t.flatten(0, 1) if bool(keep.all()) else t[keep]


@dataclass
class Recording:
    """What modules of a block were given, per batch.

    Args:
        inputs: linear layer -> its inputs [B, T, K].
        calls: module -> arguments of its calls.
    """

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    calls: dict[str, list[_Call]] = field(default_factory=dict)

    def x(self, name: str, streams: Sequence[BatchStream]) -> Tensor:
        """Return the kept tokens of a linear layer's input: float32 [T, K]."""
        parts = [masked(t, s.keep) for t, s in zip(self.inputs[name], streams, strict=True)]
        return torch.cat(parts).float()


@torch.no_grad()
def record(
    block: nn.Module,
    index: int,
    streams: Sequence[BatchStream],
    linears: dict[str, nn.Module],
    modules: dict[str, nn.Module],
) -> tuple[Recording, list[Tensor]]:
    """Run a block on all batches and note what some of its modules are given.

    Args:
        block: decoder block.
        index: its number.
        streams: all batches.
        linears: layers whose inputs are wanted, by name.
        modules: modules whose calls are wanted, by name.

    Returns:
        (recording, output [B, T, C] of the block per batch).
    """
    seen = Recording({n: [] for n in linears}, {n: [] for n in modules})

    def note_input(name: str) -> Callable[..., None]:
        return lambda _, args: seen.inputs[name].append(args[0])

    def note_call(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: seen.calls[name].append((args, kwargs))

    hooks = [m.register_forward_pre_hook(note_input(n)) for n, m in linears.items()]
    hooks += [
        m.register_forward_pre_hook(note_call(n), with_kwargs=True) for n, m in modules.items()
    ]
    try:
        return seen, [first(block(s.hidden, **s.calls[index])) for s in streams]
    finally:
        for hook in hooks:
            hook.remove()


def _prepared(x: Tensor, scale: Tensor | None, act_bits: int | None) -> Tensor:
    x = x if scale is None else x / scale
    return x if act_bits is None else fake_quantize_tokens(x, act_bits)


def runner(
    group: LinearGroup, module: nn.Module, seen: Recording, streams: Sequence[BatchStream]
) -> BlockRunner | None:
    """Return what runs the inspected module of a group with other weights.

    The inspected module reads its input only through the layers of the group (see `GroupRow`), so
    that input is scaled and quantised once for all of them.

    Args:
        group: the group.
        module: its inspected module.
        seen: calls of that module, inputs of the group's first layer.
        streams: all batches.

    Returns:
        The function, or None if the inspected module is the linear layer itself.
    """
    if group.inspect in group.linears:
        return None
    keys = [f"{n.removeprefix(group.inspect + '.')}.weight" for n in group.linears]
    given = list(zip(seen.calls[group.inspect], seen.inputs[group.linears[0]], strict=True))

    def run(
        weights: Sequence[Tensor],
        *,
        input_scale: Tensor | None,
        act_bits: int | None,
        batches: Sequence[int] | None = None,
    ) -> Iterator[Tensor]:
        named = dict(zip(keys, weights, strict=True))
        for b in range(len(given)) if batches is None else batches:
            ((args, kwargs), x), stream = given[b], streams[b]
            new = _prepared(x, input_scale, act_bits)
            args = tuple(new if a is x else a for a in args)
            kwargs = {k: new if v is x else v for k, v in kwargs.items()}
            with torch.no_grad():
                out = functional_call(module, named, args, kwargs)
            yield masked(first(out), stream.keep)

    return run
