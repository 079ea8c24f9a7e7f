"""Vision towers of Hugging Face as data: where their layers are, how wide, and of which grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from cmibq.errors import ModelError
from cmibq.registry import Registry

__all__ = ["TOWERS", "TowerKind", "TowerParts", "parts_of", "vision_config", "vision_half"]

Grid = tuple[int, int]


@dataclass(frozen=True)
class TowerKind:
    """A family of towers; a row of `TOWERS`.

    Args:
        blocks: dotted paths of its layers, the first that exists counts (transformers has moved
            them); ``*`` stands for every stage.
        prefix: tokens before the patches (CLS, distillation); registers are added to them.
        layout: what a layer gives: "tokens" [B, L, C] or "map" [B, C, H, W].
        width: (configuration, stage from 0) -> channels.
        halve: the grid of the next stage from that of a stage; None = there are no stages.
    """

    blocks: tuple[str, ...]
    prefix: int = 0
    layout: str = "tokens"
    width: Callable[[Any, int], int] = lambda config, _: int(config.hidden_size)
    halve: Callable[[int], int] | None = None


@dataclass(frozen=True)
class TowerParts:
    """What composing needs to know of a tower.

    Args:
        kind: its family.
        blocks: its layers, in order, of all stages.
        widths: width of what each layer gives.
        grids: (rows, columns) of the patches of each layer.
        image_size: (height, width) of the pixels that it takes.
        prefix_tokens: tokens before the patches (CLS, registers).
    """

    kind: TowerKind
    blocks: tuple[nn.Module, ...]
    widths: tuple[int, ...]
    grids: tuple[Grid, ...]
    image_size: Grid
    prefix_tokens: int

    @property
    def depth(self) -> int:
        """Return the number of layers."""
        return len(self.blocks)


TOWERS: Registry[TowerKind] = Registry("vision tower")
"""``model_type`` of a configuration -> where such a tower keeps its layers.

Another tower is one row: ``TOWERS.register("my_type")(TowerKind(blocks=("encoder.layers",)))``, or
an entry point of the group ``cmibq.vision_tower``.
"""

_CLIP = TowerKind(blocks=("vision_model.encoder.layers", "encoder.layers"), prefix=1)
_VIT = TowerKind(blocks=("layers", "encoder.layer"), prefix=1)
_SWIN = TowerKind(
    blocks=("encoder.layers.*.blocks",),
    width=lambda config, stage: int(config.embed_dim * 2**stage),
    halve=lambda edge: (edge + 1) // 2,
)
_CONVNEXT = TowerKind(
    blocks=("encoder.stages.*.layers",),
    layout="map",
    width=lambda config, stage: int(config.hidden_sizes[stage]),
    halve=lambda edge: edge // 2,
)

for _name, _kind in (
    ("clip_vision_model", _CLIP),
    ("siglip_vision_model", replace(_CLIP, prefix=0)),
    ("dinov2", TowerKind(blocks=("encoder.layer", "layers"), prefix=1)),
    ("dinov2_with_registers", TowerKind(blocks=("encoder.layer", "layers"), prefix=1)),
    ("vit", _VIT),
    ("deit", replace(_VIT, prefix=2)),
    ("beit", _VIT),
    ("swin", _SWIN),
    ("swinv2", _SWIN),
    ("convnext", _CONVNEXT),
    ("convnextv2", _CONVNEXT),
):
    TOWERS.register(_name)(_kind)


def vision_config(config: Any) -> Any:
    """Return the configuration of the vision half of a model (CLIP, SigLIP), or of all of it."""
    return getattr(config, "vision_config", config)


def vision_half(model: nn.Module) -> nn.Module:
    """Return the vision tower of a model with a text tower, or the model itself.

    Raises:
        ModelError: the model has a vision half in no known place.
    """
    host: Any = model
    config = getattr(host, "config", None)
    if config is None:
        raise ModelError(
            f"{type(model).__name__} has no config, so it is no Hugging Face tower; "
            + _how_to_add("of its config")
        )
    if vision_config(config) is config:
        return model
    half = getattr(host, "vision_model", None)
    if not isinstance(half, nn.Module):
        raise ModelError(
            f"{type(model).__name__} has a vision_config but no vision_model; pass its vision tower"
        )
    return half


def _how_to_add(name: str) -> str:
    return (
        f"allowed are {', '.join(TOWERS)}; for another one register where it keeps its layers:"
        f' cmibq.models.towers.TOWERS.register("the model_type {name}")(TowerKind(blocks=(...,)))'
    )


def _kind_of(tower: nn.Module, model_type: str) -> TowerKind:
    if model_type == "siglip2_vision_model":
        raise ModelError(
            "siglip2_vision_model takes patches of images of any shape, not pixels; use one of the"
            " SigLIP 2 checkpoints of fixed resolution, whose model_type is 'siglip'"
        )
    if model_type not in TOWERS:
        raise ModelError(
            f"{type(tower).__name__} is a vision tower of model_type {model_type!r}, which is not"
            f" known; {_how_to_add(repr(model_type))}"
        )
    return TOWERS[model_type]


def _layers(tower: Any, path: str) -> list[tuple[nn.Module, int]] | None:
    """Return (layer, stage) of all layers under a dotted path, or None where there are none."""
    first, star, rest = path.partition(".*.")
    found: Any = tower
    for part in first.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, nn.ModuleList):
        return None
    if not star:
        return [(block, 0) for block in found]
    return [(block, at) for at, stage in enumerate(found) for block in getattr(stage, rest, ())]


def _pair(size: Any) -> Grid:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def parts_of(tower: nn.Module) -> TowerParts:
    """Return the parts of a tower.

    Raises:
        ModelError: the tower is of no known family, or its layers are in no known place.
    """
    host: Any = tower
    config = vision_config(vision_half(host).config)
    kind = _kind_of(tower, str(config.model_type))
    for path in kind.blocks:
        found = _layers(tower, path)
        if found:
            break
    else:
        raise ModelError(
            f"{type(tower).__name__} keeps its layers in none of {', '.join(kind.blocks)}; this"
            " version of transformers moved them: " + _how_to_add(repr(config.model_type))
        )
    edges, patches = _pair(config.image_size), _pair(config.patch_size)
    grids = [(edges[0] // patches[0], edges[1] // patches[1])]
    while kind.halve is not None and len(grids) <= found[-1][1]:
        grids.append((kind.halve(grids[-1][0]), kind.halve(grids[-1][1])))
    return TowerParts(
        kind,
        tuple(block for block, _ in found),
        tuple(kind.width(config, stage) for _, stage in found),
        tuple(grids[stage] for _, stage in found),
        edges,
        kind.prefix + int(getattr(config, "num_register_tokens", 0) or 0),
    )
