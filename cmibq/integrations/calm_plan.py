"""What a CALM training would train, from configurations alone: nothing is loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cmibq import models
from cmibq.errors import ConfigError
from cmibq.integrations.calm import attach_calm
from cmibq.integrations.hooks import projector_of
from cmibq.integrations.hostloss import host_parameters
from cmibq.models.composed import CALMVisionTower
from cmibq.models.composed_files import open_image_processor, tower_config
from cmibq.models.composed_processor import pack_processor_
from cmibq.models.processor import quiet
from cmibq.recipe import parse_model_args
from cmibq.recipe.places import local_path, placeholder
from cmibq.recipe.train_calm import CALMRecipe
from cmibq.train.parameters import Row, count, format_table, total

__all__ = [
    "choose_",
    "describe",
    "numbers",
    "parts_table",
    "plan",
    "tower_folder",
]


def choose_(
    loaded: models.LoadedModel, tower: CALMVisionTower, recipe: CALMRecipe, stage: int
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Freeze all that a stage does not train.

    Returns:
        The fusions' parameters that it trains, and the host's.
    """
    loaded.model.requires_grad_(False)
    tuned = stage == 1 or recipe.tune_type_vision_tower == "calm"
    own = list(tower.calm_modules.parameters()) if tuned else []
    beside = host_parameters(loaded, recipe.parts(stage))
    for p in (*own, *beside):
        p.requires_grad_(True)
    return own, beside


def parts_table(model: nn.Module, tower: CALMVisionTower) -> list[Row]:
    """Return parameters by part: towers, fusions and their sum, projector, the rest, all."""
    fusions = f"{len(tower.calm_modules)} fusions"
    seen = {
        "anchor tower": tower.anchor_tower,
        "augmenting tower": tower.augmenting_tower,
        fusions: tower.calm_modules,
    }
    rows = count({**seen, "projector": projector_of(model), "language model": model})
    sight = [row for row in rows if row.name in seen]
    rest = [row for row in rows if row.name not in seen]
    return [*sight, total(sight, "towers and fusions"), *rest, total(rows, "whole model")]


def numbers(model: nn.Module, tower: CALMVisionTower) -> dict[str, int]:
    """Return the parameters of every part, by name."""
    return {row.name: row.parameters for row in parts_table(model, tower)}


def describe(model: nn.Module, tower: CALMVisionTower) -> str:
    """Return the table of parameters as text, and the share that is trained."""
    rows = parts_table(model, tower)
    sight = next(row for row in rows if row.name == "towers and fusions")
    here, there = tower.parts
    n, depth = len(tower.calm_modules), here.depth
    told = f"trained: {100 * rows[-1].share:.2f} % of the model"
    if sight.trainable:
        told += f", {100 * sight.share:.2f} % of towers and fusions"
    alike = {*here.widths} == {*there.widths} and depth == there.depth
    if alike and sight.trainable:
        about = 100 * 5 * n / (24 * depth + 5 * n)
        told += f" (5n / (24N + 5n) with n = {n}, N = {depth}: {about:.2f} %)"
    at = ", ".join(str(i + 1) for i in tower.layers)
    of = ", ".join(str(i + 1) for i in tower.sources)
    return "\n".join(
        [
            format_table(rows),
            told,
            f"layers {at} of the anchor look at layers {of} of the augmenting tower",
        ]
    )


def tower_folder(name: str, field: str = "augmenting_model") -> Path:
    """Return the folder of a vision tower.

    Args:
        name: a folder, or ``owner/name`` of what the Hugging Face cache of this machine holds.
        field: what the name was given as.

    Raises:
        ConfigError: the name is empty or stands for a folder of one's own.
    """
    if not name or placeholder(name):
        raise ConfigError(
            f"{field} is {name!r}; give the folder of a vision tower (CLIP, SigLIP, DINOv2, ViT,"
            " ...)"
        )
    return local_path(name, "model")


def _tower_skeleton(folder: Path) -> nn.Module:
    """Return a tower on the ``meta`` device: shapes without weights."""
    from transformers import AutoModel

    with quiet(), torch.device("meta"):
        made: nn.Module = AutoModel.from_config(tower_config(folder))
    return made


def _check_processors(recipe: CALMRecipe, model: Path, tower: CALMVisionTower) -> None:
    """Refuse processors that make images of another size than their tower takes."""
    found = open_image_processor(tower_folder(recipe.augmenting_model))
    if found is not None and (model / "processor_config.json").exists():
        pack_processor_(models.load_processor(model), found).check(tower.image_sizes)


def _skeletons(recipe: CALMRecipe) -> tuple[models.LoadedModel, CALMVisionTower]:
    folder = parse_model_args(recipe.model_args)
    adapter = models.read_family(folder, model=recipe.model)
    there = tower_folder(recipe.augmenting_model)
    loaded = models.LoadedModel(models.skeleton(folder), None, adapter, folder)
    augmenting = _tower_skeleton(there)
    with torch.device("meta"):
        tower = attach_calm(loaded.model, augmenting, recipe.tower)
    return loaded, tower


def _shapes(tower: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(p.shape)) for name, p in tower.named_parameters()]


def _check_anchor(recipe: CALMRecipe, tower: CALMVisionTower) -> None:
    """Refuse an ``anchor_model`` that is another tower than the model's own."""
    if not recipe.anchor_model:
        return
    named = _tower_skeleton(tower_folder(recipe.anchor_model, "anchor_model"))
    if _shapes(named) != _shapes(tower.anchor_tower):
        raise ConfigError(
            f"anchor_model {recipe.anchor_model!r} is a {type(named).__name__} of other shapes than"
            " the vision tower of the model, which is the anchor; leave anchor_model empty"
        )


def plan(recipe: CALMRecipe) -> dict[int, str]:
    """Return the table of parameters of every stage to run; configurations are read, no weights.

    Raises:
        ConfigError: heads do not divide the width, more composition layers than layers, ...
        ModelError: a folder is missing or not supported.
    """
    loaded, tower = _skeletons(recipe)
    _check_anchor(recipe, tower)
    _check_processors(recipe, loaded.path, tower)
    made = {}
    for stage in recipe.wanted:
        choose_(loaded, tower, recipe, stage)
        made[stage] = describe(loaded.model, tower)
    return made
