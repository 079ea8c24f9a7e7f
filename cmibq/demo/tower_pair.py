"""Two small vision towers with different strengths, each trained alone on pictures of tiles.

The anchor (CLIP's architecture) was trained to read digits and to add the two of a row. It sees
16 x 16 pixels, one patch per tile, and no colour. The augmenting tower (DINOv2's) was trained to
tell the hue of every patch and whether there is a digit, never which. It sees 32 x 32 pixels, four
patches per tile.
Both have 12 layers of width 48; heads that are thrown away read them after layers 6 and 12.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.demo.scenes import Pool, load_pool
from cmibq.demo.tiles import HUES, SIZE, TEXTURES, TILE, Tiles, render
from cmibq.demo.training import descend

if TYPE_CHECKING:
    from transformers import CLIPVisionModel, Dinov2Model

__all__ = [
    "DEPTH",
    "MEAN",
    "STD",
    "WIDTH",
    "anchor_pixels",
    "augmenting_pixels",
    "build_anchor",
    "build_augmenting",
    "train_anchor_",
    "train_augmenting_",
]

WIDTH: Final = 48
DEPTH: Final = 12
MEAN: Final = 0.3
STD: Final = 0.25
_LOOKS: Final = (DEPTH // 2, DEPTH)
_DIGITS, _SUMS = 11, 18


def _spread_(tower: nn.Module) -> None:
    """Start narrow layers wide enough to train: 1/sqrt(inputs), less where they join the stream."""
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear):
            joins = name.endswith(("out_proj", "fc2", "output.dense"))
            std = (0.3 if joins else 1.0) / math.sqrt(module.in_features)
            nn.init.normal_(module.weight, std=std)


def build_anchor(seed: int) -> CLIPVisionModel:
    """Build the untrained anchor; the global random state is left as it was."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        image_size=SIZE // 2,
        patch_size=TILE // 2,
        projection_dim=WIDTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower: Any = CLIPVisionModel(config).float()
        _spread_(tower)
        embeddings = getattr(tower, "vision_model", tower).embeddings
        nn.init.normal_(embeddings.position_embedding.weight, std=0.3)
        nn.init.normal_(embeddings.patch_embedding.weight, std=0.08)
    return tower


def build_augmenting(seed: int) -> Dinov2Model:
    """Build the untrained augmenting tower; the global random state is left as it was."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=WIDTH,
        mlp_ratio=4,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=TILE // 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower: Any = Dinov2Model(config).float()
        _spread_(tower)
        nn.init.normal_(tower.embeddings.position_embeddings, std=0.3)
        nn.init.normal_(tower.embeddings.patch_embeddings.projection.weight, std=0.08)
    return tower


def anchor_pixels(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Do what the anchor's image processor does: halve, scale, normalise.

    Args:
        pixels: uint8 ``(N, 32, 32, 3)``.

    Returns:
        float32 ``(N, 3, 16, 16)``.
    """
    whole = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    half = torch.floor(functional.avg_pool2d(whole, 2) + 0.5)
    return (half / 255 - MEAN) / STD


def augmenting_pixels(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Do what the augmenting tower's image processor does: scale, normalise.

    Args:
        pixels: uint8 ``(N, 32, 32, 3)``.

    Returns:
        float32 ``(N, 3, 32, 32)``.
    """
    whole = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    return ((whole / 255 - MEAN) / STD).contiguous()


class _Readers(nn.Module):
    """Linear heads on normalised states, used in training only."""

    def __init__(self, classes: dict[str, int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, n) for name, n in classes.items()})

    def loss(self, states: Tensor, wanted: dict[str, Tensor]) -> Tensor:
        """Return the sum of cross-entropies; `wanted` are ``(N, tokens)``, -1 where none."""
        seen = self.norm(states)
        some = [
            functional.cross_entropy(
                self.heads[name](seen).flatten(0, 1), told.flatten(), ignore_index=-1
            )
            for name, told in wanted.items()
        ]
        return torch.stack(some).sum()


def _fit_(
    tower: Any,
    pixels: Tensor,
    wanted: tuple[dict[str, Tensor], dict[str, Tensor]],
    classes: dict[str, int],
    *,
    seed: int,
    steps: int,
    batch: int,
    title: str,
) -> list[float]:
    """Train a tower in place with readers after layers 6 and 12; return the losses."""
    rng = np.random.default_rng((seed, 71))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        readers = [_Readers(classes) for _ in _LOOKS]
    learners = [p for module in (tower, *readers) for p in module.parameters()]
    optimiser = torch.optim.AdamW(
        learners, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True
    )

    def look(_: int) -> tuple[Tensor, float]:
        rows = torch.from_numpy(rng.integers(len(pixels), size=batch))
        states = tower(pixel_values=pixels[rows], output_hidden_states=True).hidden_states
        told = [{name: t[rows] for name, t in some.items()} for some in wanted]
        some = [
            reader.loss(states[at][:, 1:], facts)
            for reader, at, facts in zip(readers, _LOOKS, told, strict=True)
        ]
        loss = torch.stack(some).sum()
        return loss, float(loss.detach())

    tower.train()
    curve = descend(optimiser, steps, title, look)
    tower.eval()
    return curve


def _drawn(pool: Pool, count: int, rng: np.random.Generator, blank: float) -> Tiles:
    """Draw pictures of tiles that are not the task's: each tile for itself, digits may recur."""
    rows = rng.integers(len(pool.digits), size=(count, 4))
    rows[rng.random((count, 4)) < blank] = -1
    textures = rng.integers(len(TEXTURES), size=(count, 4))
    hues = np.where(rows >= 0, -1, rng.integers(-1, len(HUES), size=(count, 4)))
    pixels = render(pool, rows, textures, hues, rng, split="train", augment=True)
    digits = np.where(rows >= 0, pool.digits[rows], -1)
    return Tiles(pixels, digits, textures, hues, rows)


def train_anchor_(
    tower: CLIPVisionModel, *, seed: int, steps: int = 1600, pictures: int = 16000
) -> list[float]:
    """Train an anchor in place: digits after layer 6; digits and sums of rows after layer 12.

    Its pictures are grey; afterwards the three channels of its patch embedding are made equal,
    which changes nothing for grey pictures and leaves it without a sense of hue.

    Args:
        tower: what `build_anchor` made.
        seed: of pictures, heads and order.
        steps: of 128 pictures.
        pictures: how many different ones there are.

    Returns:
        The loss of every step.
    """
    made = _drawn(load_pool("train"), pictures, np.random.default_rng((seed, 67)), 0.15)
    both = (made.digits.reshape(-1, 2, 2) >= 0).all(2).repeat(2, axis=1)
    digits = torch.from_numpy(made.digits + 1)
    # Sums of 18 are left out: the task has none, as its digits differ.
    sums = torch.from_numpy(np.where(both & (made.sums < _SUMS), made.sums, -1))
    pixels = anchor_pixels(made.pixels).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    wanted = {"digit": digits}, {"digit": digits, "sum": sums}
    classes = {"digit": _DIGITS, "sum": _SUMS}
    curve = _fit_(
        *(tower, pixels, wanted, classes), seed=seed, steps=steps, batch=128, title="anchor"
    )
    anchor: Any = tower
    weight = getattr(anchor, "vision_model", anchor).embeddings.patch_embedding.weight
    with torch.no_grad():
        weight.copy_(weight.mean(1, keepdim=True).expand_as(weight))
    return curve


def train_augmenting_(
    tower: Dinov2Model, *, seed: int, steps: int = 400, pictures: int = 6000
) -> list[float]:
    """Train an augmenting tower in place: hue of every patch, and whether its tile has a digit.

    Args:
        tower: what `build_augmenting` made.
        seed: of pictures, heads and order.
        steps: of 48 pictures.
        pictures: how many different ones there are.

    Returns:
        The loss of every step.
    """
    made = _drawn(load_pool("train"), pictures, np.random.default_rng((seed, 69)), 0.4)

    def patches(of_tile: npt.NDArray[np.int64]) -> Tensor:
        grid = of_tile.reshape(-1, 2, 2).repeat(2, axis=1).repeat(2, axis=2)
        return torch.from_numpy(grid.reshape(len(of_tile), -1))

    told = {"hue": patches(made.hues + 1), "ink": patches((made.digits >= 0).astype(np.int64))}
    classes = {"hue": len(HUES) + 1, "ink": 2}
    pixels = augmenting_pixels(made.pixels)
    return _fit_(
        *(tower, pixels, (told, told), classes),
        seed=seed,
        steps=steps,
        batch=48,
        title="augmenting",
    )
