"""Checks of a model before anything slow is done: weights, group sizes, groups of layers."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.memory import page_out
from cmibq.models.base import Adapter
from cmibq.models.rows import linears_of
from cmibq.search import LinearGroup, apply_scales_

__all__ = [
    "call_of",
    "check_groups",
    "check_others",
    "check_weights",
    "fitting_group",
    "float32_block",
    "verify_block",
    "verify_groups",
]

_TOKENS = 4
_TOLERANCE = 1e-4


def fitting_group(width: int, group_size: int) -> int:
    """Return the largest group of weights up to `group_size` that divides a row; -1 if none does.

    Groups are multiples of 8. The layers of vision towers have widths such as 4304.

    Example:
        >>> fitting_group(4096, 128), fitting_group(4304, 128), fitting_group(36, 32)
        (128, 16, -1)
    """
    if group_size <= 0:
        return group_size
    return next((g for g in range(group_size - group_size % 8, 0, -8) if width % g == 0), -1)


def check_groups(widths: Mapping[str, int], group_size: int) -> None:
    """Check that a group size divides the inputs of linear layers.

    Args:
        widths: layer -> number of inputs.
        group_size: weights per scale along the input; <= 0 is one scale per row.

    Raises:
        ModelError: it does not divide; names the layer and offers sizes that divide all.

    Example:
        >>> check_groups({"q_proj": 96, "down_proj": 64}, 48)
        Traceback (most recent call last):
        ...
        cmibq.errors.ModelError: down_proj: w_group 48 does not divide its 64 inputs; choose one of
        8, 16, 32, or -1 for one scale per row
    """
    for name, width in widths.items():
        if group_size > 0 and width % group_size:
            common = math.gcd(*widths.values())
            fits = ", ".join(str(g) for g in range(8, common + 1, 8) if common % g == 0)
            raise ModelError(
                f"{name}: w_group {group_size} does not divide its {width} inputs; choose one of"
                f" {fits or '(none)'}, or -1 for one scale per row"
            )


@torch.no_grad()
def check_weights(model: nn.Module, names: Iterable[str]) -> None:
    """Check that the weights of linear layers are finite, before anything slow is done.

    Raises:
        ModelError: a weight has NaN or infinity; names the layer.
    """
    for name in names:
        _refuse_infinite(name, model.get_parameter(f"{name}.weight"))


@torch.no_grad()
def check_others(model: nn.Module, names: Iterable[str]) -> None:
    """Check that all other parameters are finite: norms, embeddings, head, parts out of scope.

    Nothing else looks at them: NaN there is in the float model's answers too, so that comparing
    with these finds no difference. Pages of a mapped file are given back.

    Args:
        model: the model.
        names: linear layers that `check_weights` has seen.

    Raises:
        ModelError: a parameter has NaN or infinity; names it.
    """
    seen = {f"{name}.weight" for name in names}
    for name, values in model.named_parameters():
        if name not in seen and values.is_floating_point() and values.numel():
            _refuse_infinite(name, values)
            page_out(values.data_ptr(), values.nbytes)


def _refuse_infinite(name: str, values: Tensor) -> None:
    ends = torch.aminmax(values)
    if not (torch.isfinite(ends.min) and torch.isfinite(ends.max)):
        bad = int((~torch.isfinite(values)).sum())
        raise ModelError(
            f"{name}: {bad} of {values.numel()} weights are NaN or infinite; check the checkpoint"
        )


@contextlib.contextmanager
def float32_block(block: nn.Module, *, changes: bool = True) -> Iterator[None]:
    """Hold the parameters of a block in float32; cast back what is still a parameter after it.

    Values go back to where they were: weights that are mapped from a file stay so. A block of a
    float32 model is left alone. Buffers, such as packed weights, are never cast.

    Args:
        block: the block.
        changes: False if the parameters are only read meanwhile: nothing is written back then.
    """
    before = {n: p.data for n, p in block.named_parameters()}
    for p in block.parameters():
        p.data = p.data.float()
    try:
        yield
    finally:
        for n, p in block.named_parameters():
            old = before.pop(n, p.data)
            if changes and old.data_ptr() != p.data_ptr():
                old.copy_(p.data)
            p.data = old
        for gone in before.values():  # packed meanwhile
            page_out(gone.data_ptr(), gone.nbytes)


def _powers(group: LinearGroup, width: int, draw: torch.Generator) -> Tensor:
    """Return random powers of two: multiplying by them and dividing again loses no bit."""
    values = group.values
    count = width if values is None else values.count * values.width
    s = 2.0 ** torch.randint(-3, 4, (count,), generator=draw).float()
    if values is None:
        return s
    return s.view(values.count, 1, -1).expand(-1, values.repeats, -1).reshape(-1)


@torch.no_grad()
def verify_block(
    adapter: Adapter, name: str, block: nn.Module, hidden: Tensor, call: Mapping[str, Any]
) -> None:
    """Check that scales fused into a block leave its output as it was; the block is not changed.

    Args:
        adapter: family of the model.
        name: name of the block in the model.
        block: the block.
        hidden: its input.
        call: what else it is called with.

    Raises:
        ModelError: a group's scales change the output; names the group.
    """

    def run() -> Tensor:
        made = block(hidden.float(), **call)
        out: Tensor = made[0] if isinstance(made, tuple) else made
        return out.double()

    modules = {f"{name}.{n}": m for n, m in block.named_modules() if n}
    draw = torch.Generator().manual_seed(0)
    with float32_block(block, changes=False):
        want = run()
        if not bool(torch.isfinite(want).all()):
            return  # weights that are not finite are told by name elsewhere
        for group in adapter.groups(name, block):
            width = modules[group.linears[0]].get_parameter("weight").shape[1]
            scales = _powers(group, width, draw)
            apply_scales_(modules, group, scales)
            try:
                error = float((run() - want).abs().max() / want.abs().max().clamp(min=1e-30))
            finally:
                apply_scales_(modules, group, 1 / scales)
            if not error <= _TOLERANCE:
                raise ModelError(
                    f"group {group.name!r} of {name}: scales between {group.prev} and"
                    f" {', '.join(group.linears)} change the output by {error:.1g} of its largest"
                    f" value; the model is not built as family {adapter.family!r} expects (a norm"
                    " that multiplies by 1 + weight?), use method rtn"
                )


def _make(block: nn.Module) -> tuple[Any, ...]:
    """Return what blocks of the same make have in common."""
    return (
        type(block),
        tuple((n, type(m)) for n, m in block.named_modules()),
        tuple((n, tuple(m.weight.shape)) for n, m in linears_of(block).items()),
    )


def call_of(
    block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Return the input of a block and whatever else it is called with, by name."""
    named = dict(kwargs)
    if not args:
        return named.pop("hidden_states"), named
    names = list(inspect.signature(block.forward).parameters)
    return args[0], {**dict(zip(names[1:], args[1:], strict=False)), **named}


class _Reached(Exception):
    """Not an error: the block is reached, nobody needs the rest of the forward pass."""


@torch.no_grad()
def verify_groups(adapter: Adapter, model: nn.Module) -> None:
    """Check the groups of the decoder on a few tokens, one block of every make.

    Raises:
        ModelError: as `verify_block`.
    """
    hosted: Any = model
    table = hosted.get_input_embeddings()
    ids = torch.arange(_TOKENS)[None] % table.num_embeddings
    first = {_make(b): (n, b) for n, b in reversed(adapter.blocks(model))}
    for name, block in reversed(first.values()):
        seen: list[tuple[Tensor, dict[str, Any]]] = []

        def note(block: nn.Module, args: Any, kwargs: Any, seen: Any = seen) -> None:
            seen.append(call_of(block, args, kwargs))
            raise _Reached

        hook = block.register_forward_pre_hook(note, with_kwargs=True)
        try:
            with contextlib.suppress(_Reached):
                adapter.decoder(model)(inputs_embeds=table(ids), use_cache=False)
        finally:
            hook.remove()
        hidden, call = seen[0]
        verify_block(adapter, name, block, hidden, _as_float32(call))


def _as_float32(call: Mapping[str, Any]) -> dict[str, Any]:
    from torch.utils._pytree import tree_map

    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.float() if floating else value

    made: dict[str, Any] = tree_map(cast, dict(call))
    return made
