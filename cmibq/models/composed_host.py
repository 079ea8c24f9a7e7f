"""Vision-language models with a composed tower, as folders: ``calm`` in their config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError, PackageError
from cmibq.fusion.settled import SettledFusion, settle
from cmibq.io.tensors import read_tensors, write_tensors
from cmibq.models.composed import CALMVisionTower
from cmibq.models.processor import quiet
from cmibq.recipe.calm import CALMConfig

__all__ = [
    "KEY",
    "calm_of",
    "compose_",
    "describe_",
    "host_of",
    "read_host",
    "settle_",
    "write_host",
]

KEY = "calm"
"""Entry of config.json: "config" (`CALMConfig`), "augmenting" (configuration of that tower) and
"settled" (fusions are plain linear layers, as packages have them)."""
_WEIGHTS = "calm_model.safetensors"
"""Not ``model.safetensors``: transformers alone would open that with a random anchor, and warn."""


def host_of(model: nn.Module) -> Any:
    """Return the module that holds ``vision_tower``.

    Raises:
        ModelError: there is none.
    """
    for path in ("", "model", "model.model"):
        found: Any = model
        for part in filter(None, path.split(".")):
            found = getattr(found, part, None)
        if isinstance(getattr(found, "vision_tower", None), nn.Module):
            return found
    raise ModelError(
        f"{type(model).__name__} has no vision_tower; compose a LLaVA-like model, or build a"
        " CALMVisionTower yourself"
    )


def calm_of(model: nn.Module) -> CALMVisionTower | None:
    """Return the composed tower of a model, or None."""
    return next((m for m in model.modules() if isinstance(m, CALMVisionTower)), None)


def describe_(model: nn.Module) -> None:
    """Write into the configuration of a model how its tower is composed, or that it is not."""
    hosted: Any = model
    tower, config = calm_of(model), getattr(hosted, "config", None)
    if config is None:
        return
    if tower is None:
        vars(config).pop(KEY, None)
        return
    other: Any = tower.augmenting_tower
    setattr(
        config,
        KEY,
        {
            "config": tower.calm_config.to_dict(),
            "augmenting": other.config.to_dict(),
            "settled": any(isinstance(m, SettledFusion) for m in tower.calm_modules),
        },
    )


def compose_(model: nn.Module) -> CALMVisionTower | None:
    """Compose the tower of a fresh model as its configuration says; fusions and towers are random.

    Args:
        model: as its configuration makes it, on any device; changed.

    Returns:
        The composed tower, or None where the configuration tells of none.

    Raises:
        ModelError: the entry is damaged.
        ConfigError: heads do not divide the width, or another field is out of range.
    """
    from transformers import AutoConfig, AutoModel

    hosted: Any = model
    told = getattr(hosted.config, KEY, None)
    if told is None:
        return None
    if not isinstance(told, dict) or not isinstance(told.get("augmenting"), dict):
        raise ModelError(f"{KEY} in config.json is damaged (no augmenting); copy it again")
    config = CALMConfig.from_dict(told.get("config", {}))
    kind, fields = told["augmenting"].get("model_type"), dict(told["augmenting"])
    fields.pop("model_type", None)
    with quiet():
        other = AutoModel.from_config(AutoConfig.for_model(kind, **fields))
    host = host_of(model)
    tower = CALMVisionTower(host.vision_tower, other, config)
    host.vision_tower = tower.train(model.training)
    if told.get("settled"):
        settle_(model)
    return tower


def settle_(model: nn.Module) -> nn.Module:
    """Make the fusions of a model's composed tower plain linear layers, in place.

    Nothing happens to a model without a composed tower, or that is settled already.

    Args:
        model: a model, or a composed tower itself.
    """
    tower = calm_of(model)
    if tower is not None:
        for number, fusion in enumerate(tower.calm_modules):
            made: Any = settle(fusion)  # type: ignore[arg-type]
            tower.calm_modules[number] = made
        describe_(model)
    return model


def write_host(model: nn.Module, folder: Path) -> None:
    """Write the configuration and weights of a model with a composed tower, for `read_host`."""
    hosted: Any = model
    describe_(model)
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied weights once
            seen.add(id(tensor))
            state[name] = tensor.detach().contiguous()
    with (folder / _WEIGHTS).open("wb") as file:
        write_tensors(file, state)
    with quiet():
        hosted.config.save_pretrained(folder)
        if getattr(hosted, "generation_config", None) is not None:
            hosted.generation_config.save_pretrained(folder)


def read_host(folder: Path) -> nn.Module:
    """Open what `write_host` wrote, in evaluation mode, every tensor in the dtype of the file.

    Raises:
        PackageError: the file is truncated or damaged.
        ModelError: weights are missing or left over, or config.json cannot be used.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    with quiet():
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForImageTextToText.from_config(config)
    compose_(model)
    if not (folder / _WEIGHTS).is_file():
        raise PackageError(f"{folder} has no {_WEIGHTS}; copy it again")
    state, _ = read_tensors(folder / _WEIGHTS)
    own = model.state_dict(keep_vars=True)
    tied = {n for n, t in own.items() if n not in state and any(t is own.get(m) for m in state)}
    lost = [n for n in own if n not in state and n not in tied]
    extra = [n for n in state if n not in own]
    wrong = [n for n, t in state.items() if n in own and t.shape != own[n].shape]
    if lost or extra or wrong:
        some = ", ".join((lost + extra + wrong)[:3])
        raise ModelError(
            f"{folder}: {len(lost)} weights are missing, {len(extra)} left over and {len(wrong)} of"
            f" another shape ({some}); it is incomplete or belongs to another model"
        )
    model.load_state_dict(state, strict=False, assign=True)
    with torch.no_grad():
        model.tie_weights()
    made: nn.Module = model.eval()
    return made
