"""Quantising what stands before the decoder, and models that are in memory already.

Vision blocks are searched like decoder blocks, the projector is rounded without scales.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cmibq.data import Encoded
from cmibq.errors import ConfigError, DataError
from cmibq.io import ScaleEntry
from cmibq.models import (
    LoadedModel,
    calm_of,
    check_groups,
    check_others,
    check_weights,
    float32_block,
    settle_,
    verify_groups,
)
from cmibq.ptq.capture import PLACE, Place
from cmibq.ptq.journal import BlockFound, Journal
from cmibq.ptq.run import process_, round_, to_entries
from cmibq.ptq.spill import Room
from cmibq.ptq.stream import MOST_PIXELS, BatchStream, enter, image_batches, run_blocks
from cmibq.ptq.team import ALONE, Team
from cmibq.quant import QuantSpec
from cmibq.recipe import QuantRecipe, parse_scope

__all__ = ["enter_tower", "process_tower_", "quantize_"]


def enter_tower(
    loaded: LoadedModel,
    samples: Sequence[Encoded],
    *,
    room: Room | None = None,
    team: Team = ALONE,
) -> Iterator[BatchStream]:
    """Bring images to the first vision block; all their patches count alike.

    Images are taken in the order of the samples until there are 16 million pixel values; more
    patches hardly move the scales.

    Args:
        loaded: the model, its vision tower float.
        samples: calibration samples.
        room: where hidden states are kept; None = in memory.
        team: only the batches of this process are made.

    Raises:
        DataError: no sample has an image.
    """
    every = list(dict.fromkeys(p for s in samples for p in s.pictures))
    if not every:
        raise DataError(
            "scope has vision but no calibration sample has an image; calibrate on items with"
            " images (calib_data coco), or leave vision out"
        )
    adapter, model, room = loaded.adapter, loaded.model, room or Room(Path())
    blocks = [b for _, b in adapter.blocks(model, "vision")]
    number = used = 0
    # A tower may be called apart for images that are alone in their sample.
    for alone in (True, False):
        pictures = [p for p in every if p.alone is alone]
        for _, inputs in image_batches(pictures, loaded.processor):
            used += inputs["pixel_values"].numel()
            if number and used > MOST_PIXELS:
                return
            if team.has(number):
                run = functools.partial(adapter.image_features, model, inputs)
                found, calls = run_blocks(blocks, run)
                hidden = room.empty(tuple(found[0].shape), torch.float32).copy_(found[0])
                yes = torch.ones(hidden.shape[:-1], dtype=torch.bool)
                nothing = torch.empty(0, dtype=torch.int64)
                yield BatchStream(hidden, calls, yes, yes, ~yes, ~yes, [], nothing)
            number += 1


def process_tower_(
    recipe: QuantRecipe,
    loaded: LoadedModel,
    samples: Sequence[Encoded],
    journal: Journal,
    *,
    known: dict[int, BlockFound] | None = None,
    change: bool = True,
    tick: Callable[[], object] = lambda: None,
    place: Place = PLACE,
    specs: Mapping[str, QuantSpec] | None = None,
) -> dict[int, BlockFound]:
    """Do for vision blocks what `process_` does for the decoder, then round the projector.

    A composed tower is rounded like the projector. Nothing is done for parts that are not in the
    recipe's scope.

    Args:
        recipe: what to do; gradients and distorted inputs are the decoder's alone.
        loaded: the model; its decoder may be quantised already.
        samples: calibration samples.
        journal: as for `process_`.
        known: as for `process_`.
        change: False leaves the model as it is.
        tick: called after every group that was searched.
        place: room and processes.
        specs: as for `process_`.

    Returns:
        What was found per vision block, by its number (`Adapter.numbered`).
    """
    parts, found = parse_scope(recipe.scope), dict[int, BlockFound]()
    plain = replace(recipe, reweight=False, distort=False)
    if "vision" in parts:
        found = process_(
            plain,
            loaded,
            lambda _: enter_tower(loaded, samples, room=place.room, team=place.team),
            journal,
            known=known,
            change=change,
            tick=tick,
            place=place,
            part="vision",
            specs=specs,
        )
    tower = calm_of(loaded.model)
    if "vision" in parts and change and tower is not None:
        with float32_block(tower):
            round_(plain, loaded, loaded.adapter.targets(loaded.model, "vision"), specs)
    if "projector" in parts and change:
        with float32_block(loaded.adapter.projector(loaded.model)):
            round_(plain, loaded, loaded.adapter.targets(loaded.model, "projector"), specs)
    return found


def quantize_(
    loaded: LoadedModel, samples: Sequence[Encoded], recipe: QuantRecipe
) -> list[ScaleEntry]:
    """Quantise a model that is in memory already, in place; for layouts that `load` cannot open.

    Its groups are checked first. With ``recipe.pseudo_quant`` weights stay floats, rounded.

    Args:
        loaded: the model in float, its processor and the adapter of its family.
        samples: calibration samples (`cmibq.data.encode`); none are needed for rtn.
        recipe: what to do; paths and the choice of samples are not looked at.

    Returns:
        The scales found, as `cmibq.io.save_scales` takes them.

    Raises:
        ConfigError: the recipe has fields about files, or samples are missing.
        ModelError: a group cannot be scaled, a weight is not finite, a group size does not divide.
        DataError: samples lack what the recipe needs.
    """
    idle = {"max_bytes": "", "max_memory": "", "embed_bit": 16, "head_bit": 16, "threads": None}
    if given := [n for n, value in idle.items() if getattr(recipe, n) != value]:
        raise ConfigError(
            f"{', '.join(given)} set for a model in memory, where it does nothing; leave it out"
        )
    if not samples and recipe.method != "rtn":
        raise ConfigError(f"method {recipe.method!r} needs samples; pass some, or take rtn")
    adapter, model = loaded.adapter, loaded.model
    if "vision" in parse_scope(recipe.scope):
        settle_(model)
    verify_groups(adapter, model)
    check_weights(model, adapter.targets(model, recipe.scope))
    check_others(model, adapter.targets(model, recipe.scope))
    if "lm" in parse_scope(recipe.scope):
        names = adapter.targets(model)
        widths = {n: model.get_parameter(f"{n}.weight").shape[1] for n in names}
        check_groups(widths, recipe.group_size)
    blocks = adapter.numbered(model, recipe.scope)
    published = recipe.variant == "reference"
    tables = {i: adapter.groups(n, b, published=published) for i, n, b in blocks}
    known: dict[int, BlockFound] | None = None if samples else {i: {} for i in tables}
    with tempfile.TemporaryDirectory() as folder:
        journal, found = Journal(Path(folder), "memory"), dict[int, BlockFound]()
        if "lm" in parse_scope(recipe.scope):

            def source(gradients: bool) -> Iterator[BatchStream]:
                return enter(loaded, samples, reference=published, gradients=gradients)

            found |= process_(recipe, loaded, source, journal, known=known)
        found |= process_tower_(recipe, loaded, samples, journal, known=known)
    return to_entries(tables, found)
