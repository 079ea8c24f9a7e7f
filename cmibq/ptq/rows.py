"""Running the inspected module of a group for some tokens only, where that is known to be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cmibq.ptq.capture import first, parameter_keys
from cmibq.ptq.stream import BatchStream
from cmibq.search import BlockRunner, CausalAttention, LinearGroup, RowRunner, prepared

__all__ = ["row_runner"]

_QKV = ("q_proj", "k_proj", "v_proj")
_SAME = 1e-4
_CHECKED = 64
"""Tokens on which a runner is compared with the module, at most."""


@dataclass(frozen=True, eq=False)
class _Pointwise:
    """A module that treats every token on its own; callable as `RowRunner`."""

    module: nn.Module
    keys: Sequence[str]
    argument: str | None
    x: Tensor
    cast: dict[str, Tensor] = field(default_factory=dict)

    def __call__(
        self,
        weights: Sequence[Tensor],
        rows: Tensor,
        *,
        input_scale: Tensor | None,
        act_bits: int | None,
    ) -> Tensor:
        dtype = weights[0].dtype
        seen = prepared(self.x[rows], input_scale, act_bits)[None].to(dtype)
        args, kwargs = ((seen,), {}) if self.argument is None else ((), {self.argument: seen})
        named = self._others(dtype) | dict(zip(self.keys, weights, strict=True))
        return first(functional_call(self.module, named, args, kwargs))[0].float()

    def _others(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the parameters that a group does not replace, in another dtype; made once."""
        if dtype == torch.float32:
            return {}
        if not self.cast:
            params = self.module.named_parameters()
            self.cast.update((n, p.to(dtype)) for n, p in params if n not in self.keys)
        return self.cast


def _rotary(
    module: Any, calls: Sequence[Mapping[str, Any]], streams: Sequence[BatchStream]
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [T, D] of the kept tokens from the calls of an attention module."""
    tables: tuple[list[Tensor], list[Tensor]] = ([], [])
    for kwargs, stream in zip(calls, streams, strict=True):
        for table, value in zip(tables, kwargs["position_embeddings"], strict=True):
            if value.ndim == 4:  # Qwen2-VL: [3, B, T, D], a third of the channels per axis
                parts = value.split([*_sections(module), *_sections(module)], dim=-1)
                value = torch.cat([part[i % 3] for i, part in enumerate(parts)], -1)
            table.append(value.expand(*stream.keep.shape, -1)[stream.keep])
    cos, sin = (torch.cat(t).float() for t in tables)
    return cos, sin


def _sections(module: Any) -> list[int]:
    """Return how many channel pairs turn with time, height and width of a position."""
    for owner in (module, module.config):
        for name in ("rope_parameters", "rope_scaling"):
            found = getattr(owner, name, None)
            if found and "mrope_section" in found:
                return list(found["mrope_section"])
    raise AttributeError("mrope_section")


def _attention(
    module: Any,
    group: LinearGroup,
    x: Tensor,
    calls: Sequence[Mapping[str, Any]],
    streams: Sequence[BatchStream],
) -> CausalAttention | None:
    """Return causal attention with what the module holds; None where it lacks a part."""
    if [n.rsplit(".", 1)[-1] for n in group.linears] != list(_QKV):
        return None
    try:
        cos, sin = _rotary(module, calls, streams)
        size = int(module.head_dim)
        out = module.o_proj
        return CausalAttention(
            x,
            [n for s in streams for n in s.keep.sum(1).tolist() if n],
            [getattr(module, n).bias for n in _QKV],
            (out.weight, out.bias),
            size,
            float(getattr(module, "scaling", size**-0.5)),
            cos,
            sin,
        )
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def _agrees(
    run: RowRunner, block: BlockRunner, weights: Sequence[Tensor], lengths: Sequence[int]
) -> bool:
    """Tell whether a runner gives what the module gives, on some tokens of the shortest batch."""
    plain = {"input_scale": None, "act_bits": None}
    if isinstance(run, _Pointwise):  # other tokens around it must not matter
        start, count = 0, min(sum(lengths), 2 * _CHECKED)
        whole = run(weights, torch.arange(count), **plain)
    else:
        batch = min((n, i) for i, n in enumerate(lengths) if n)[1]
        start, count = sum(lengths[:batch]), lengths[batch]
        whole = next(iter(block(weights, **plain, batches=[batch])))
    at = torch.linspace(0, count - 1, min((count + 1) // 2, _CHECKED)).long()  # never all
    want = whole[at]
    try:
        got = run(weights, start + at, **plain)
    except RuntimeError:  # shapes of a family that does something else
        return False
    error = float((got - want).abs().max())
    return got.shape == want.shape and error <= _SAME * float(want.abs().max())


@torch.no_grad()
def row_runner(
    group: LinearGroup,
    module: nn.Module,
    x: Tensor,
    weights: Sequence[Tensor],
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
    block: BlockRunner | None,
    streams: Sequence[BatchStream],
) -> RowRunner | None:
    """Return what runs the inspected module of a group on some tokens.

    A module whose only argument is its input is taken to treat tokens on their own; one called
    with position embeddings and made of q, k, v and o projections to be causal attention. Either
    is compared with the module itself on float weights before it is used.

    Args:
        group: the group.
        module: its inspected module.
        x: float32 [T, K], kept tokens of the group's input.
        weights: float weights of the group.
        calls: arguments of the module's call per batch.
        block: runs the module on whole batches.
        streams: all batches.

    Returns:
        The runner, or None where nothing that fits was found: then whole batches are run.
    """
    lengths = [int(s.keep.sum()) for s in streams]
    if block is None or not any(lengths):
        return None
    args, kwargs = calls[0]
    run: RowRunner | None = None
    if len(args) + len(kwargs) == 1:
        run = _Pointwise(module, parameter_keys(group), next(iter(kwargs), None), x)
    elif "position_embeddings" in kwargs:
        run = _attention(module, group, x, [k for _, k in calls], streams)
    return run if run is not None and _agrees(run, block, weights, lengths) else None
