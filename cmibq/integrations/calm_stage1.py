"""What stage one of a CALM training leaves, and stage two starts from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cmibq.errors import ConfigError, DataError
from cmibq.fileio import atomic_dir, read_json, write_json
from cmibq.io.tensors import read_tensors, write_tensors
from cmibq.models.composed import CALMVisionTower
from cmibq.recipe.train_calm import CALMRecipe
from cmibq.train.peers import rank

__all__ = ["STAGE1", "check_fusions", "holds", "stage1_of", "take_fusions_", "write_fusions"]

STAGE1 = "stage1"
"""Folder in the output folder."""
_TENSORS, _FACTS, _OWN = "fusions.safetensors", "calm.json", "calm_modules."


def stage1_of(recipe: CALMRecipe) -> Path:
    """Return the folder that stage two starts from."""
    return Path(recipe.stage1_path or recipe.output_path) / STAGE1


def check_fusions(folder: Path) -> None:
    """Refuse a folder without fusions of a stage one.

    Raises:
        ConfigError: naming it.
    """
    if not (folder / _FACTS).exists():
        raise ConfigError(
            f"stage is 2, but {str(folder)!r} holds no fusions of a stage one; run stage 1 with"
            " this output_path first, or name another run in stage1_path"
        )


def holds(folder: Path, identity: str) -> bool:
    """Return whether a folder has the fusions of a stage one of the recipe with this hash."""
    file = folder / _FACTS
    return file.exists() and read_json(file).get("identity") == identity


def write_fusions(folder: Path, model: nn.Module, tower: CALMVisionTower, identity: str) -> None:
    """Write the fusions, and what was trained beside them; of several processes the first one does.

    Args:
        folder: replaced in one move.
        model: what is trained requires gradients.
        tower: inside it.
        identity: hash of the recipe.
    """
    if rank():
        return
    inner = {id(p): f"{_OWN}{n}" for n, p in tower.calm_modules.named_parameters()}
    named = model.named_parameters()
    trained = {inner.get(id(p), f"host.{n}"): p.detach() for n, p in named if p.requires_grad}
    with atomic_dir(folder, overwrite=True) as made:
        with open(made / _TENSORS, "wb") as file:
            write_tensors(file, trained)
        told = {"format": 1, "identity": identity, "config": tower.calm_config.to_dict()}
        write_json(made / _FACTS, told)


def _check_same(folder: Path, tower: CALMVisionTower) -> None:
    """Refuse fusions whose weights fit a tower, but were trained for other heads or layers."""
    facts = read_json(folder / _FACTS)
    told = facts.get("config", {}) if isinstance(facts, dict) else {}
    odd = tower.calm_config.conflicts(told)
    if odd:
        raise DataError(f"{folder} holds fusions of another configuration: {odd}; make them equal")


@torch.no_grad()
def take_fusions_(folder: Path, model: nn.Module, tower: CALMVisionTower) -> str:
    """Put the fusions of a stage one in place, and what was trained beside them.

    Returns:
        What was done, as a sentence.

    Raises:
        DataError: they are of other fusions.
    """
    _check_same(folder, tower)
    tensors, _ = read_tensors(folder / _TENSORS)
    own = {f"{_OWN}{n}": p for n, p in tower.calm_modules.named_parameters()}
    places = own | {f"host.{n}": p for n, p in model.named_parameters()}
    odd = {n for n, t in tensors.items() if n not in places or places[n].shape != t.shape}
    odd |= {*own} - {*tensors}
    if odd:
        raise DataError(
            f"{folder} holds fusions of another configuration ({', '.join(sorted(odd)[:3])}); give"
            " the fields of its run, or train a stage one of these"
        )
    for name, tensor in tensors.items():
        places[name].copy_(tensor)
    beside = len(tensors) - len(own)
    more = f", and {beside} of what was trained beside them" if beside else ""
    return f"stage 2 starts from the fusions of {folder}: {len(own)} tensors{more}"
