"""Who answers: a composed model as it is, with its fusions off, in 8 bits, and other models."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

from cmibq.errors import ModelError
from cmibq.fusion import Fusion
from cmibq.fusion.settled import settle
from cmibq.integrations.calm import calm_of
from cmibq.models import LoadedModel, accelerate_, linears_of
from cmibq.models.composed import CALMVisionTower
from cmibq.nn import convert_
from cmibq.quant import PerGroup, QuantSpec

__all__ = ["Voice", "composed_tower", "in_eight_bits", "voices_of"]


@dataclass(frozen=True)
class Voice:
    """One who answers.

    Args:
        name: as the table has it.
        about: what it is, in a few words.
        loaded: the model.
        alone: all fusions of its composed tower are off, whatever the reader chose.
    """

    name: str
    about: str
    loaded: LoadedModel
    alone: bool = False

    def left_out(self, off: Iterable[int]) -> frozenset[int]:
        """Return which fusions are off when the reader switched some off."""
        tower = calm_of(self.loaded.model)
        if tower is None:
            return frozenset()
        own = frozenset(range(len(tower.calm_modules)))
        return own if self.alone else own & frozenset(off)


def composed_tower(loaded: LoadedModel) -> CALMVisionTower:
    """Return the composed tower of a model.

    Raises:
        ModelError: it has none.
    """
    tower = calm_of(loaded.model)
    if tower is None:
        raise ModelError(
            f"{loaded.path} is no composed model: its vision tower stands alone; name a folder that"
            " cmibq train calm wrote, or talk with it by cmibq chat"
        )
    return tower


def in_eight_bits(loaded: LoadedModel) -> LoadedModel:
    """Return a copy of a composed model with 8-bit weights and activations; needs no data.

    Weights of decoder, projector, both towers and the fusions are rounded to the nearest level per
    row, activations per token. Embeddings and the output layer stay as they are.

    Args:
        loaded: the composed model; left as it was.

    Raises:
        ModelError: it is not composed, or has NaN weights; names the layer.
    """
    made = replace(loaded, model=copy.deepcopy(loaded.model).requires_grad_(False))
    tower = composed_tower(made)
    for number, fusion in enumerate(tower.calm_modules):
        tower.calm_modules[number] = settle(cast(Fusion, fusion))
    place = next(name for name, module in made.model.named_modules() if module is tower)
    names = made.adapter.targets(made.model, "lm,projector")
    names += [f"{place}.{name}" for name in linears_of(tower)]
    convert_(made.model, dict.fromkeys(names, QuantSpec(8, PerGroup(0), True)), 8)
    accelerate_(made.model)
    return made


def voices_of(
    composed: LoadedModel,
    *,
    anchor: LoadedModel | None = None,
    augmenting: LoadedModel | None = None,
    int8: LoadedModel | None = None,
) -> tuple[Voice, ...]:
    """Return who answers, in the order of the table: anchor, augmenting, composed, int8.

    Args:
        composed: the composed model.
        anchor: model with the anchor alone; None = the composed one with its fusions off.
        augmenting: model with the augmenting tower alone, where there is one.
        int8: the composed model in 8 bits, where it is wanted.

    Raises:
        ModelError: `composed` is not composed.
    """
    count = len(composed_tower(composed).calm_modules)
    text = f"{count} fusion{'s' if count > 1 else ''}"
    found = [
        Voice("anchor", "the anchor's tower alone", anchor)
        if anchor is not None
        else Voice("anchor", "the composed model, fusions off", composed, alone=True)
    ]
    if augmenting is not None:
        found.append(Voice("augmenting", "the other tower alone", augmenting))
    found.append(Voice("composed", f"both towers, {text}", composed))
    if int8 is not None:
        found.append(Voice("composed int8", "the same in 8 bits", int8))
    return tuple(found)
