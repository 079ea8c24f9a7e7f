"""Opening a vision tower alone, from a folder of its own or of the model it is the eye of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmibq.errors import ConfigError, ModelError
from cmibq.models.processor import quiet
from cmibq.recipe.places import local_path, placeholder

__all__ = ["load_tower", "tower_folder", "tower_skeleton"]


def tower_folder(name: str, field: str = "augmenting_model") -> Path:
    """Return the folder of a vision tower; nothing is downloaded.

    Args:
        name: a folder, or ``owner/name`` of what the Hugging Face cache of this machine holds.
        field: what the name was given as, for messages.

    Raises:
        ConfigError: the name is empty or a placeholder.
        ModelError: there is no config.json in the folder.
    """
    if not name or placeholder(name):
        raise ConfigError(
            f"{field} is {name!r}; give the folder of a vision tower (CLIP, SigLIP, DINOv2, ViT...)"
        )
    folder = local_path(name, "model")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{field} {name!r} has no config.json; give a local Hugging Face model folder (models"
            " are not downloaded)"
        )
    return folder


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        raise ModelError(f"{folder / 'config.json'} describes no model ({error})") from error


def _seeing(model: nn.Module) -> nn.Module:
    """Return the half of a model that sees, such as that of CLIP."""
    found = getattr(model, "vision_model", None)
    whole = hasattr(model, "text_model") and isinstance(found, nn.Module)
    return found if whole and isinstance(found, nn.Module) else model


def tower_skeleton(folder: Path) -> nn.Module:
    """Return the tower of a folder on the ``meta`` device: shapes without weights.

    Raises:
        ModelError: the configuration describes no model.
    """
    from transformers import AutoModel

    config = _config(folder)
    try:
        with quiet(), torch.device("meta"):
            return _seeing(AutoModel.from_config(config))
    except Exception as error:  # transformers raises many kinds
        raise ModelError(
            f"{folder / 'config.json'} does not describe a vision tower ({error})"
        ) from error


def load_tower(folder: Path) -> nn.Module:
    """Return the tower of a folder with its weights, in evaluation mode.

    Raises:
        ModelError: weights are missing, or do not belong to the configuration.
    """
    from transformers import AutoModel

    config = _config(folder)
    with quiet():
        try:
            model, found = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype="auto",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as error:  # transformers and safetensors raise many kinds
            raise ModelError(f"the weights of {folder} cannot be loaded ({error})") from error
    wanted = [k for k in map(str, found["missing_keys"]) if "pooler" not in k]  # nobody reads that
    if missing := sorted(wanted):
        raise ModelError(
            f"{folder}: {len(missing)} missing keys in the checkpoint ({', '.join(missing[:3])});"
            " it is incomplete or belongs to another model"
        )
    return _seeing(model).eval()
