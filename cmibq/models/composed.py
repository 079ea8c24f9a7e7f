"""Two frozen vision towers composed: the anchor's layers look at the augmenting tower's."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.errors import ConfigError, ModelError
from cmibq.fusion import build_fusion
from cmibq.models.composition import (
    Composition,
    capturing,
    composing,
    hook_anchor,
    hook_augmenting,
    leaving_out,
    note,
    watched,
)
from cmibq.models.feature_cache import FeatureCache
from cmibq.models.packed import both_of
from cmibq.models.recompute import recompute_, restore_
from cmibq.models.towers import TowerParts, parts_of, vision_half
from cmibq.recipe.calm import CALMConfig, layer_indices

__all__ = ["CALMVisionTower", "Composition", "leaving_out", "watched"]

_owners = itertools.count()


def _layers(here: TowerParts, there: TowerParts, config: CALMConfig) -> tuple[Any, Any]:
    """Return after which layers (from 0) the anchor looks, and at which of the other tower."""
    staged = here.kind.halve is not None
    if staged and config.select_layer != -1:
        raise ConfigError(
            f"select_layer is {config.select_layer}, but the anchor has stages, whose hidden states"
            " are not its layers; allowed is -1"
        )
    usable = here.depth + 1 + config.select_layer
    if usable < 1:
        raise ConfigError(
            f"select_layer is {config.select_layer}, but the anchor has {here.depth} layers;"
            f" choose -1..{-here.depth}"
        )
    return (
        tuple(i - 1 for i in config.layers_of(usable)),
        tuple(i - 1 for i in layer_indices(there.depth, config.composition_layers)),
    )


class CALMVisionTower(nn.Module):
    """A vision tower that stands for its anchor and also sees what the augmenting tower sees.

    Both towers are frozen and in evaluation mode; the fusions in `calm_modules` are what is
    trained. Without a forward of this module the anchor is what it was.

    Args:
        anchor: Hugging Face vision tower whose features come out; of a model with a text tower
            (CLIP) the vision half is taken.
        augmenting: Hugging Face vision tower that is looked at.
        config: where and how they meet.

    Raises:
        ConfigError: heads do not divide the width, or more composition layers than layers.
        ModelError: a tower is of no known family.

    Attributes:
        anchor_tower: frozen.
        augmenting_tower: frozen.
        calm_modules: the fusions, which are trained.
        layers: after which layers of the anchor (from 0) they act.
        sources: layers of the augmenting tower (from 0) that they look at.
        processors: image processors of both towers, where they were opened or set.
        cache: a `FeatureCache`, for trainings without random augmentation.
    """

    def __init__(self, anchor: nn.Module, augmenting: nn.Module, config: CALMConfig) -> None:
        super().__init__()
        anchor, augmenting = vision_half(anchor), vision_half(augmenting)
        here, there = parts_of(anchor), parts_of(augmenting)
        self.calm_config = config
        self.layers, self.sources = _layers(here, there, config)
        self.calm_modules = nn.ModuleList(
            build_fusion(here.widths[at], there.widths[of], config)
            for at, of in zip(self.layers, self.sources, strict=True)
        )
        self.anchor_tower = anchor.requires_grad_(False)
        self.augmenting_tower = augmenting.requires_grad_(False)
        self.gradient_checkpointing = config.gradient_checkpointing
        self.processors: tuple[Any, Any] | None = None
        self.cache: FeatureCache | None = None
        self.image_sizes = here.image_size, there.image_size
        self._owner = f"{os.getpid()}.{next(_owners)}"
        self._handles = hook_anchor(here, self.layers, self._owner)
        self._handles += hook_augmenting(there, self.sources, self._owner)
        self.train(self.training)

    @classmethod
    def from_pretrained(
        cls,
        anchor: str | os.PathLike[str],
        augmenting: str | os.PathLike[str] | None = None,
        config: CALMConfig | None = None,
        *,
        modules: str | os.PathLike[str] | None = None,
        dtype: torch.dtype | None = None,
    ) -> CALMVisionTower:
        """Open two towers and compose them, or open what `save_pretrained` wrote.

        Args:
            anchor: folder of the anchor (of a CLIP or SigLIP model the vision half is read), or a
                folder that `save_pretrained` wrote, which needs no `augmenting`.
            augmenting: folder of the augmenting tower.
            config: where and how they meet; None = that of the checkpoint, or the defaults.
            modules: folder or file with trained fusions; also one of the public CALM fork.
            dtype: of the towers; None = as they are stored. Fusions stay float32.

        Raises:
            ModelError: a folder is missing, damaged or does not fit; told before weights are read.
            ConfigError: see the class.
        """
        from cmibq.models.composed_files import open_composed

        return open_composed(anchor, augmenting, config, modules=modules, dtype=dtype)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, towers: bool = True, overwrite: bool = True
    ) -> None:
        """Write a folder that `from_pretrained` opens; it appears when it is complete.

        Args:
            folder: to make.
            towers: also write both towers and their processors, so that nothing else is needed;
                False = the fusions and the configuration, which names the towers' folders.
            overwrite: replace a composed tower that is there.

        Raises:
            StorageError: it cannot be written, or would delete what is no composed tower.
        """
        from cmibq.models.composed_files import save_composed

        save_composed(self, folder, towers=towers, overwrite=overwrite)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the anchor's layers after the first fusion, and fusions, are recomputed."""
        return self._checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, wanted: bool) -> None:
        self._checkpointing = wanted
        fusions: Any = self.calm_modules
        for fusion in fusions:
            fusion.recompute = wanted
        for block in parts_of(self.anchor_tower).blocks if wanted else ():
            recompute_(block)

    @property
    def config(self) -> Any:
        """Return the anchor's configuration, which hosts read sizes from."""
        host: Any = self.anchor_tower
        return host.config

    @property
    def dtype(self) -> torch.dtype:
        """Return the data type of the anchor, which hosts convert pixels to."""
        return next(self.anchor_tower.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Return where the anchor is."""
        return next(self.anchor_tower.parameters()).device

    @property
    def parts(self) -> tuple[TowerParts, TowerParts]:
        """Return the parts of the anchor and of the augmenting tower: grids, widths, prefixes."""
        return parts_of(self.anchor_tower), parts_of(self.augmenting_tower)

    def detach(self) -> nn.Module:
        """Take the hooks off both towers and return the anchor; this tower is of no use then."""
        while self._handles:
            self._handles.pop().remove()
        for block in parts_of(self.anchor_tower).blocks:
            restore_(block)
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
                anchor's pixels above the augmenting tower's (what `PackedProcessor` makes); or,
                where no processors are known, one tensor for both, resized for the augmenting one.

        Raises:
            ConfigError: other sizes, a tower's pixels are missing, or batches differ.
        """
        (ha, wa), (hb, wb) = self.image_sizes
        if isinstance(given, Mapping):
            return both_of(given)
        if not isinstance(given, Tensor) or given.ndim != 4:
            told = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ConfigError(
                f"pixel_values is {told}; give a tensor [B, 3, H, W], or a dictionary of 'anchor'"
                " and 'augmenting' with one each"
            )
        if given.shape[-2:] == (ha, wa) and self.processors is None:
            if (ha, wa) == (hb, wb):
                return given, given
            other = functional.interpolate(given.float(), (hb, wb), mode="bilinear")
            return given, other.to(given.dtype)
        if given.shape[-2:] != (ha + hb, max(wa, wb)):
            raise ConfigError(
                f"pixel_values has {tuple(given.shape[-2:])} pixels; give {(ha + hb, max(wa, wb))},"
                f" the anchor's {(ha, wa)} above the augmenting tower's {(hb, wb)}, as"
                " PackedProcessor(*tower.processors) makes them"
            )
        return given[..., :ha, :wa], given[..., ha:, :wb]

    def augment(self, pixels: Tensor) -> dict[int, Tensor]:
        """Return the augmenting tower's features by layer of the anchor.

        The tower runs in inference mode and only the wanted layers are kept. Where a gradient is
        wanted they are copied out of it, because autograd cannot save inference tensors; a host
        that unfreezes the tower gets a graph, as does who wants a gradient by the pixels. With a
        `cache` images are computed one by one, so that features do not depend on their batch.
        """
        frozen = not any(p.requires_grad for p in (pixels, *self.augmenting_tower.parameters()))
        if self.cache is not None and frozen:
            found = self.cache.through(self.augmenting_tower, self.sources, pixels, self._run)
        else:
            found = self._run(pixels, frozen=frozen)
        return {at: found[of] for at, of in zip(self.layers, self.sources, strict=True)}

    def _run(self, pixels: Tensor, *, frozen: bool = True) -> dict[int, Tensor]:
        """Return the augmenting tower's features by its layers."""
        with capturing(self._owner, self.sources, frozen=frozen) as found:
            self.augmenting_tower(pixel_values=pixels)
        lost = [of for of in self.sources if of not in found]
        if lost:
            raise ModelError(
                f"layers {[of + 1 for of in lost]} of the augmenting tower did not run, or this"
                " tower was detached; compose the towers again"
            )
        if frozen and torch.is_grad_enabled():
            for of in list(found):
                found[of] = found[of].clone()
        return found

    def _recompute(self) -> bool:
        """Tell whether layers are recomputed in the backward pass of what runs now."""
        return self._checkpointing and self.training and torch.is_grad_enabled()

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
        modules: Any = dict(zip(self.layers, self.calm_modules, strict=True))
        now = Composition(self._owner, {}, modules, need_entropy, need_weights, self._recompute())
        note(now)
        if now.modules:  # nobody looks at the augmenting tower when all fusions are left out
            now.features = self.augment(theirs)
        with composing(now):
            output = self.anchor_tower(pixel_values=mine, **kwargs)
        if need_entropy or need_weights:
            output["calm"] = now
        return output
