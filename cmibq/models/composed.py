"""Two frozen vision towers composed: the anchor's layers look at the augmenting tower's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.errors import ConfigError
from cmibq.fusion import Fusion, build_fusion
from cmibq.models.towers import TowerParts, parts_of
from cmibq.recipe.calm import CALMConfig, layer_indices

__all__ = ["CALMVisionTower", "Composition", "leaving_out", "watched"]


@dataclass
class Composition:
    """One forward pass of one composed tower.

    Args:
        features: layer of the anchor (from 0) -> features of the augmenting tower.
        modules: layer of the anchor (from 0) -> fusion; a layer without one passes on as it is.
        need_entropy: note the entropy of attention.
        need_weights: note attention averaged over heads.
        entropy: layer -> [B, H, Lq], noted.
        weights: layer -> [B, Lq, Lk], noted.
    """

    features: dict[int, Tensor]
    modules: dict[int, Fusion]
    need_entropy: bool = False
    need_weights: bool = False
    entropy: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)

    def fuse(self, layer: int, hidden: Tensor) -> Tensor:
        """Return what the next layer of the anchor reads."""
        if layer not in self.modules:
            return hidden
        seen = self.modules[layer].attend(
            hidden,
            self.features[layer].to(hidden.dtype),
            need_entropy=self.need_entropy,
            need_weights=self.need_weights,
        )
        if seen.entropy is not None:
            self.entropy[layer] = seen.entropy.detach()
        if seen.weights is not None:
            self.weights[layer] = seen.weights.detach()
        return seen.out.to(hidden.dtype)


_CURRENT: ContextVar[Composition | None] = ContextVar("composition", default=None)
"""The forward pass that runs in this thread; hooks of an anchor that is used alone do nothing."""
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
    """
    token = _LEFT_OUT.set(frozenset(numbers))
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


def _fuse(block: nn.Module, _: Any, output: Any) -> Any:
    """Send what a layer of an anchor gives through its fusion."""
    now = _CURRENT.get()
    if now is None:
        return output
    layer: Any = block._cmibq_layer
    if isinstance(output, Tensor):
        return now.fuse(layer, output)
    return (now.fuse(layer, output[0]), *output[1:])


class CALMVisionTower(nn.Module):
    """A vision tower that stands for its anchor and also sees what the augmenting tower sees.

    Both towers are frozen; the fusions in `calm_modules` are what is trained. Without a forward
    of this module the anchor is what it was.

    Args:
        anchor: Hugging Face vision tower whose features come out.
        augmenting: Hugging Face vision tower that is looked at.
        config: where and how they meet.

    Raises:
        ConfigError: heads do not divide the width, or more composition layers than layers.
        ModelError: a tower has its layers in no known place.
    """

    def __init__(self, anchor: nn.Module, augmenting: nn.Module, config: CALMConfig) -> None:
        super().__init__()
        self.calm_config = config
        here, there = parts_of(anchor), parts_of(augmenting)
        usable = here.depth + 1 + config.select_layer
        self.layers = tuple(i - 1 for i in config.layers_of(usable))
        self.sources = tuple(i - 1 for i in layer_indices(there.depth, config.composition_layers))
        self.anchor_tower = anchor.requires_grad_(False)
        self.augmenting_tower = augmenting.requires_grad_(False)
        self.calm_modules = nn.ModuleList(
            build_fusion(here.widths[at], there.widths[of], config)
            for at, of in zip(self.layers, self.sources, strict=True)
        )
        self._sizes = here.image_size, there.image_size
        self._handles = [self._hook(here, at) for at in self.layers]

    @property
    def config(self) -> Any:
        """Return the anchor's configuration, which hosts read sizes from."""
        return self.anchor_tower.config

    def _hook(self, parts: TowerParts, layer: int) -> Any:
        block: Any = parts.blocks[layer]
        block._cmibq_layer = layer
        return block.register_forward_hook(_fuse, prepend=True)

    def detach(self) -> nn.Module:
        """Take the hooks off the anchor and return it; this tower is of no use afterwards."""
        while self._handles:
            self._handles.pop().remove()
        return self.anchor_tower

    def train(self, mode: bool = True) -> CALMVisionTower:
        """Set the mode of the fusions; frozen towers stay in evaluation."""
        super().train(mode)
        self.anchor_tower.eval()
        self.augmenting_tower.eval()
        return self

    def pixels(self, given: Any) -> tuple[Tensor, Tensor]:
        """Return the pixels of both towers.

        Args:
            given: a dictionary of "anchor" and "augmenting", [B, 3, H, W] each; or one tensor, the
                anchor's pixels above the augmenting tower's (what `PackedProcessor` makes); or the
                anchor's alone, which the augmenting tower then gets resized.
        """
        (ha, wa), (hb, wb) = self._sizes
        if isinstance(given, dict):
            return given["anchor"], given["augmenting"]
        if given.shape[-2:] == (ha, wa):
            small = functional.interpolate(given.float(), (hb, wb), mode="bilinear")
            return given, small.to(given.dtype)
        if given.shape[-2:] != (ha + hb, max(wa, wb)):
            raise ConfigError(
                f"pixel_values has {tuple(given.shape[-2:])} pixels; give {(ha, wa)} for both"
                f" towers, or {(ha + hb, max(wa, wb))}, the anchor's above the augmenting tower's"
            )
        return given[..., :ha, :wa], given[..., ha:, :wb]

    def augment(self, pixels: Tensor) -> dict[int, Tensor]:
        """Return the augmenting tower's features by layer of the anchor, without a graph."""
        with torch.inference_mode():
            made = self.augmenting_tower(pixel_values=pixels, output_hidden_states=True)
        states = made.hidden_states
        return {
            at: states[of + 1].clone() for at, of in zip(self.layers, self.sources, strict=True)
        }

    def forward(
        self,
        pixel_values: Any,
        *,
        need_entropy: bool = False,
        need_weights: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return what the anchor gives, fused; `output.calm` is the `Composition`, where wanted.

        Args:
            pixel_values: see `pixels`.
            need_entropy: note the entropy of attention.
            need_weights: note attention averaged over heads.
            **kwargs: go to the anchor.
        """
        mine, theirs = self.pixels(pixel_values)
        out, watch = _LEFT_OUT.get(), _WATCH.get()
        numbered: Any = enumerate(zip(self.layers, self.calm_modules, strict=True))
        modules = {layer: fusion for k, (layer, fusion) in numbered if k not in out}
        entropy = need_entropy or watch is not None
        weights = need_weights or (watch is not None and watch[1])
        now = Composition(self.augment(theirs), modules, entropy, weights)
        if watch is not None:
            watch[0].append(now)
        token = _CURRENT.set(now)
        try:
            output = self.anchor_tower(pixel_values=mine, **kwargs)
        finally:
            _CURRENT.reset(token)
        if need_entropy or need_weights:
            output["calm"] = now
        return output
