"""One forward pass of a composed tower, and the hooks through which it reaches the layers.

Hooks stay on the layers and do nothing unless the composed tower that put them there runs in the
current thread: what a pass needs is in a `Composition` behind a ``ContextVar``, never on modules,
so threads, replicas and several towers on one anchor do not meet.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ConfigError
from cmibq.fusion import Fusion
from cmibq.models.towers import TowerParts

__all__ = [
    "Composition",
    "as_tokens",
    "capturing",
    "composing",
    "hook_anchor",
    "hook_augmenting",
    "leaving_out",
    "note",
    "recomputes",
    "watched",
]


@dataclass
class Composition:
    """One forward pass of one composed tower.

    Args:
        owner: mark of the composed tower that runs.
        features: layer of the anchor (from 0) -> features of the augmenting tower, [B, Lk, C].
        modules: layer of the anchor (from 0) -> fusion; a layer without one passes on as it is.
        need_entropy: note the entropy of attention.
        need_weights: note attention averaged over heads.
        recompute: layers after the first fusion are recomputed in the backward pass.
        entropy: layer -> [B, H, Lq], noted.
        weights: layer -> [B, Lq, Lk], noted.
    """

    owner: str
    features: dict[int, Tensor]
    modules: dict[int, Fusion]
    need_entropy: bool = False
    need_weights: bool = False
    recompute: bool = False
    entropy: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)

    def fuse(self, layer: int, hidden: Tensor) -> Tensor:
        """Return what the next layer of the anchor reads, of the shape of `hidden`."""
        if layer not in self.modules:
            return hidden
        seen = self.modules[layer].attend(
            as_tokens(hidden),
            self.features[layer],
            need_entropy=self.need_entropy,
            need_weights=self.need_weights,
        )
        if seen.entropy is not None:
            self.entropy[layer] = seen.entropy.detach()
        if seen.weights is not None:
            self.weights[layer] = seen.weights.detach()
        return _as_before(seen.out, hidden)


@dataclass
class _Wanted:
    """Layers of an augmenting tower that are kept while it runs."""

    owner: str
    layers: frozenset[int]
    found: dict[int, Tensor] = field(default_factory=dict)


_COMPOSING: ContextVar[Composition | None] = ContextVar("composing", default=None)
_CAPTURING: ContextVar[_Wanted | None] = ContextVar("capturing", default=None)
_LEFT_OUT: ContextVar[frozenset[int]] = ContextVar("left_out", default=frozenset())
_WATCH: ContextVar[tuple[list[Composition], bool] | None] = ContextVar("watch", default=None)
"""Where forward passes of this thread are noted, and whether with weights; see `watched`."""


@contextlib.contextmanager
def leaving_out(numbers: Iterable[int]) -> Iterator[None]:
    """Compute composed towers without some of their fusions, in this thread and context.

    With all of them left out a composed tower is its anchor. A thread that is started within does
    the same only if it runs in a copy of the context (`contextvars.copy_context`).

    Args:
        numbers: which of `calm_modules`, from 0.

    Raises:
        ConfigError: one is no whole number; one that a tower does not have is told when it runs.
    """
    found = frozenset(numbers)
    if not all(isinstance(number, int) for number in found):
        raise ConfigError(f"numbers is {[*found]!r}; name fusions by whole numbers from 0")
    token = _LEFT_OUT.set(found)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


@contextlib.contextmanager
def watched(*, need_weights: bool = False) -> Iterator[list[Composition]]:
    """Note every forward pass of composed towers inside, also where a host model calls them.

    Args:
        need_weights: note attention averaged over heads too, and not entropy alone.

    Returns:
        The passes so far, the oldest first; empty it when a step is done.
    """
    seen: list[Composition] = []
    token = _WATCH.set((seen, need_weights))
    try:
        yield seen
    finally:
        _WATCH.reset(token)


def note(now: Composition) -> None:
    """Take the fusions out of a pass that `leaving_out` names, and tell those who watch of it."""
    out, watch = _LEFT_OUT.get(), _WATCH.get()
    wrong = sorted(out - {*range(len(now.modules))})
    if wrong:
        raise ConfigError(
            f"leaving_out names fusions {wrong}, but this composed tower has {len(now.modules)};"
            f" choose from 0..{len(now.modules) - 1}"
        )
    for number, layer in enumerate(list(now.modules)):
        if number in out:
            del now.modules[layer]
    if watch is not None:
        now.need_entropy = True
        now.need_weights = now.need_weights or watch[1]
        watch[0].append(now)


def as_tokens(hidden: Tensor) -> Tensor:
    """Return features of a layer as [B, L, C]; maps [B, C, H, W] are read row by row."""
    return hidden if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)


def _as_before(tokens: Tensor, hidden: Tensor) -> Tensor:
    """Return fused tokens in the shape and the memory layout of what a layer gave.

    The layout too, because torch adds up in another order where it differs: at step 0 the next
    layers must give the anchor's bits.
    """
    made = tokens if hidden.ndim == 3 else tokens.transpose(1, 2).unflatten(2, hidden.shape[2:])
    if made.stride() == hidden.stride():
        return made
    return torch.empty_like(hidden).copy_(made)


def recomputes() -> bool:
    """Tell whether the composed tower that runs in this thread wants layers recomputed."""
    now = _COMPOSING.get()
    return now is not None and now.recompute


def _fuse(owner: str, layer: int, _: nn.Module, __: Any, output: Any) -> Any:
    """Send what a layer of an anchor gives through its fusion."""
    now = _COMPOSING.get()
    if now is None or now.owner != owner:
        return None
    if isinstance(output, Tensor):
        return now.fuse(layer, output)
    return (now.fuse(layer, output[0]), *output[1:])


def _keep(owner: str, layer: int, _: nn.Module, __: Any, output: Any) -> None:
    """Keep what a layer of an augmenting tower gives."""
    now = _CAPTURING.get()
    if now is not None and now.owner == owner and layer in now.layers:
        now.found[layer] = as_tokens(output if isinstance(output, Tensor) else output[0])


def hook_anchor(parts: TowerParts, layers: tuple[int, ...], owner: str) -> list[Any]:
    """Put hooks on layers of an anchor; they run before those that record hidden states."""
    return [
        parts.blocks[at].register_forward_hook(functools.partial(_fuse, owner, at), prepend=True)
        for at in layers
    ]


def hook_augmenting(parts: TowerParts, layers: tuple[int, ...], owner: str) -> list[Any]:
    """Put hooks on layers of an augmenting tower."""
    return [
        parts.blocks[at].register_forward_hook(functools.partial(_keep, owner, at))
        for at in dict.fromkeys(layers)
    ]


@contextlib.contextmanager
def composing(now: Composition) -> Iterator[None]:
    """Let the hooks of a composed tower act in this thread."""
    token = _COMPOSING.set(now)
    try:
        yield
    finally:
        _COMPOSING.reset(token)


@contextlib.contextmanager
def capturing(
    owner: str, layers: tuple[int, ...], *, frozen: bool = True
) -> Iterator[dict[int, Tensor]]:
    """Yield a dictionary that gets the features of layers of the augmenting tower that runs.

    A composed tower around this one is out of sight meanwhile: both towers may be one module.

    Args:
        owner: the composed tower.
        layers: of the augmenting tower, from 0.
        frozen: run in inference mode; False where the augmenting tower is trained as well.
    """
    now = _Wanted(owner, frozenset(layers))
    tokens = _CAPTURING.set(now), _COMPOSING.set(None)
    try:
        with torch.inference_mode() if frozen else contextlib.nullcontext():
            yield now.found
    finally:
        _CAPTURING.reset(tokens[0])
        _COMPOSING.reset(tokens[1])
