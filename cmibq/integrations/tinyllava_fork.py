"""Checkpoints of the public CALM fork of TinyLLaVA_Factory, as they come from its trainer.

Its module has no layer norm, and it takes any anchor to have 12 layers: a CLIP of 24 layers is
fused after its layers 3, 6, 9 and 12. Names of weights: `cmibq.models.composed_keys`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmibq.errors import ConfigError, ModelError
from cmibq.integrations.tinyllava_record import KEY
from cmibq.recipe.calm import CALMConfig

__all__ = ["fork_config", "is_fork", "read_config", "read_weights"]

_LAYERS = (3, 6, 9, 12)


def is_fork(config: dict[str, Any]) -> bool:
    """Return whether the fork wrote a config.json.

    Example:
        >>> is_fork({"vision_model_name_or_path": "calm:clip", "vision_config": {}})
        True
    """
    name = str(config.get("vision_model_name_or_path", ""))
    return name.startswith(f"{KEY}:") and KEY not in (config.get("vision_config") or {})


def fork_config(anchor: str, augmenting: str, depths: tuple[int, int]) -> CALMConfig:
    """Return the configuration that the fork's fixed numbers amount to.

    Args:
        anchor: name of the anchor.
        augmenting: name of the augmenting tower.
        depths: layers of both.

    Raises:
        ConfigError: a tower of a depth that the fork fuses in part only.
    """
    if depths[0] < _LAYERS[-1] or depths[1] % len(_LAYERS):
        raise ConfigError(
            f"the towers have {depths[0]} and {depths[1]} layers; checkpoints of the public fork"
            " are read for anchors of 12 layers or more, and augmenting towers whose layers 4"
            " divides"
        )
    return CALMConfig(
        anchor_model=anchor,
        augmenting_model=augmenting,
        fusion_strategy="cross_attention",
        norm="none",
        anchor_layers=_LAYERS,
    )


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Return all weights of a folder, in one file or in several.

    Raises:
        ModelError: there are none, or a file is damaged.
    """
    from safetensors.torch import load_file

    root, state = Path(folder), dict[str, Tensor]()
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        for path in sorted(root.glob(pattern)):
            try:
                plain = path.suffix == ".bin"
                state |= torch.load(path, weights_only=True) if plain else load_file(path)
            except Exception as error:
                raise ModelError(f"{path} cannot be read ({error}); copy it again") from error
        if state:
            return state
    raise ModelError(f"{root} holds no weights (model.safetensors or pytorch_model.bin)")


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return config.json of a folder; empty where there is none."""
    path = Path(folder) / "config.json"
    try:
        found = json.loads(path.read_text("utf8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is no JSON ({error}); copy it again") from error
    return found if isinstance(found, dict) else {}
