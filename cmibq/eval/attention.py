"""Where a composed tower looks: attention from the anchor's patches to the augmenting tower's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmibq.errors import ConfigError, ModelError
from cmibq.models.composed import CALMVisionTower
from cmibq.models.towers import parts_of

__all__ = ["Looks", "View", "look"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class View:
    """What one tower gets to see.

    Args:
        picture: uint8 [H, W, 3], its pixels as colours again.
        grid: (rows, columns) of its patches.
        prefix: tokens before the patches (CLS, registers).
    """

    picture: NDArray[np.uint8]
    grid: tuple[int, int]
    prefix: int

    @property
    def patches(self) -> int:
        """Return the number of patches."""
        return self.grid[0] * self.grid[1]

    def patch_at(self, x: float, y: float) -> int:
        """Return the patch at a place of the picture; places outside count as the nearest.

        Args:
            x: 0 (left) to 1.
            y: 0 (top) to 1.

        Example:
            >>> View(np.zeros((4, 4, 3), np.uint8), (2, 3), 1).patch_at(0.99, 0.6)
            5
        """
        rows, columns = self.grid
        row = min(max(int(y * rows), 0), rows - 1)
        return row * columns + min(max(int(x * columns), 0), columns - 1)


@dataclass(frozen=True, eq=False)
class Looks:
    """Attention of every fusion of a composed tower for one image.

    Args:
        anchor: what the anchor sees.
        augmenting: what the augmenting tower sees.
        layers: number (from 1) of the anchor's layer behind which each fusion is.
        weights: float32 [n, Lq, Lk], attention averaged over heads; rows sum to 1.
        entropy: float32 [n, H, Lq], entropy of each row of attention in nats.
    """

    anchor: View
    augmenting: View
    layers: tuple[int, ...]
    weights: Floats
    entropy: Floats

    def of_patch(self, patch: int, fusion: int = -1) -> tuple[Floats, float]:
        """Return where a patch of the anchor looks.

        Args:
            patch: number of the patch, row by row from 0.
            fusion: which fusion, from 0; negative numbers count from the last.

        Returns:
            (weights of the augmenting tower's patches [rows, columns], weight of its tokens before
            the patches); together they sum to 1.

        Raises:
            ConfigError: there is no such patch.
        """
        if not 0 <= patch < self.anchor.patches:
            raise ConfigError(f"patch is {patch}; allowed are 0..{self.anchor.patches - 1}")
        row = self.weights[fusion, self.anchor.prefix + patch]
        prefix = self.augmenting.prefix
        return row[prefix:].reshape(self.augmenting.grid), float(row[:prefix].sum())

    def most_decided(self, fusion: int = -1) -> int:
        """Return the patch of the anchor whose attention is the narrowest (least entropy)."""
        return int(self.entropy[fusion, :, self.anchor.prefix :].mean(axis=0).argmin())

    def mean_entropy(self) -> Floats:
        """Return the mean entropy over the anchor's tokens, [n, H]."""
        made: Floats = self.entropy.mean(axis=2)
        return made


def _grid(tokens: int, prefix: int, size: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """Return (rows, columns) of patches with the shape of an image, and tokens before them."""
    for extra in dict.fromkeys((prefix, 0, 1)):
        count = tokens - extra
        rows = round(math.sqrt(count * size[0] / size[1]))
        if rows and count % rows == 0:
            return (rows, count // rows), extra
    return (1, tokens), 0


def _colours(pixels: Tensor, processor: Any) -> NDArray[np.uint8]:
    """Return normalised pixels [3, H, W] as colours; without a processor, stretched to 0..255."""
    values = pixels.detach().float().cpu().numpy().transpose(1, 2, 0)
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is not None and std is not None:
        values = values * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    else:
        low, high = values.min(), values.max()
        values = (values - low) / max(float(high - low), 1e-6)
    made: NDArray[np.uint8] = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return made


def _view(pixels: Tensor, tokens: int, tower: Any, processor: Any) -> View:
    grid, prefix = _grid(tokens, parts_of(tower).prefix_tokens, tuple(pixels.shape[-2:]))
    return View(_colours(pixels, processor), grid, prefix)


@torch.no_grad()
def look(
    tower: CALMVisionTower, pixel_values: Any, processors: tuple[Any, Any] = (None, None)
) -> Looks:
    """Return where a composed tower looks in one image.

    Fusions that are left out (`cmibq.models.composed.leaving_out`) and fusions without attention
    have no part in it.

    Args:
        tower: the composed tower.
        pixel_values: one image, as the tower takes it.
        processors: image processors of anchor and augmenting tower, which tell how pixels were
            normalised; without them pictures are stretched to the full range of colours.

    Raises:
        ConfigError: more than one image.
        ModelError: no fusion has attention.
    """
    mine, theirs = tower.pixels(pixel_values)
    if len(mine) != 1:
        raise ConfigError(f"pixel_values holds {len(mine)} images; give one")
    seen = tower(pixel_values, need_entropy=True, need_weights=True).calm
    layers = sorted(seen.weights)
    if not layers:
        raise ModelError(
            "no fusion of this tower has attention to look at: fusion_strategy is"
            f" {tower.calm_config.fusion_strategy!r}, or all fusions are left out"
        )
    weights = np.stack([seen.weights[at][0].float().cpu().numpy() for at in layers])
    entropy = np.stack([seen.entropy[at][0].float().cpu().numpy() for at in layers])
    return Looks(
        _view(mine[0], weights.shape[1], tower.anchor_tower, processors[0]),
        _view(theirs[0], weights.shape[2], tower.augmenting_tower, processors[1]),
        tuple(at + 1 for at in layers),
        weights,
        entropy,
    )
