"""From a float model and calibration data to a quantised model on disk."""

from __future__ import annotations

import errno
import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cmibq.data import Encoded, collate
from cmibq.errors import StorageError
from cmibq.fileio import atomic_dir, read_json, write_json
from cmibq.io import best_layout, is_package, save_scales
from cmibq.io import load as load_package
from cmibq.io import save as save_package
from cmibq.models import (
    LoadedModel,
    calm_of,
    check_others,
    check_weights,
    load,
    save_float,
    settle_,
)
from cmibq.ops.library import torch_threads
from cmibq.ptq.capture import Place
from cmibq.ptq.fit import encoded
from cmibq.ptq.job import NOTE, Job, prepare
from cmibq.ptq.journal import BlockFound
from cmibq.ptq.learned import TICKS
from cmibq.ptq.parts import quantise_
from cmibq.ptq.result import QuantizeResult
from cmibq.ptq.run import to_entries
from cmibq.ptq.spill import Room
from cmibq.ptq.tables import pack_tables_, table_specs
from cmibq.ptq.team import join
from cmibq.ptq.verify import Held, hold_out, verify_
from cmibq.recipe import QuantRecipe, parse_scope, weights_hash
from cmibq.search import LinearGroup

__all__ = ["QuantizeResult", "quantize"]

_PROBE_SAMPLES = 2
_PROBE_TOKENS = 16


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _notes(
    job: Job, loaded: LoadedModel, found: dict[int, BlockFound], samples: Sequence[Encoded]
) -> dict[str, Any]:
    """Return what is kept beside the weights: JSON values."""
    names = {i: name for i, name, _ in loaded.adapter.numbered(loaded.model, job.recipe.scope)}
    rows = [(names[i], n, g) for i, block in sorted(found.items()) for n, g in block.items()]
    return {
        "fingerprint": job.fingerprint,
        "family": loaded.adapter.family,
        "calibration": {
            "samples": len(samples),
            "tokens": sum(map(len, samples)),
            "image_tokens": sum(int(s.vision.sum()) for s in samples),
            "answer_tokens": sum(int(s.answer.sum()) for s in samples),
        },
        "layer_errors": {n: _finite(e) for _, _, g in rows for n, e in g.errors.items()},
        "groups": [
            {
                "block": block,
                "group": name,
                "ratio": g.result.ratio,
                "vision_weight": g.modality,
                "losses": [_finite(x) for x in g.result.losses],
            }
            for block, name, g in rows
            if g.result.scales is not None
        ],
    }


def _probe(loaded: LoadedModel, samples: Sequence[Encoded]) -> dict[str, Tensor]:
    """Return the inputs of one small forward pass."""
    model: Any = loaded.model
    if not samples:
        ids = torch.arange(_PROBE_TOKENS) % model.get_input_embeddings().num_embeddings
        ids[ids == loaded.adapter.image_token_id(model)] = 0
        return {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    return collate(samples[:_PROBE_SAMPLES], loaded.processor).model_inputs(model.dtype)


def _layout(recipe: QuantRecipe, loaded: LoadedModel) -> str:
    if recipe.format != "auto":
        return recipe.format
    # Others have no place for new biases, and files of another size than was promised.
    # Programs without cmibq would build a model without its second tower.
    own = recipe.bias_correction or recipe.max_bytes or calm_of(loaded.model) is not None
    return "cmibq" if own else best_layout(loaded.model)


def _write(
    job: Job, loaded: LoadedModel, notes: dict[str, Any], samples: Sequence[Encoded]
) -> None:
    """Write the quantised model; the folder appears when it is complete."""
    if job.output is None:
        return
    recipe = asdict(job.recipe)
    overwrite = job.recipe.overwrite or job.output_is_made
    if job.recipe.pseudo_quant:
        with atomic_dir(job.output, overwrite=overwrite) as folder:
            save_float(loaded, folder)
            write_json(folder / NOTE, {**notes, "recipe": recipe})
    else:
        save_package(
            loaded.model,
            loaded.path,
            job.output,
            recipe=recipe,
            metadata=notes,
            probe=_probe(loaded, samples),
            layout=_layout(job.recipe, loaded),
            overwrite=overwrite,
        )


def _write_model(
    job: Job, loaded: LoadedModel, notes: dict[str, Any], samples: Sequence[Encoded]
) -> None:
    try:
        _write(job, loaded, notes, samples)
    except StorageError as error:
        # Another process may have done the same run meanwhile: then its folder is as good.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not job.made_output():
            raise


def _write_scales(
    job: Job, tables: Mapping[int, Sequence[LinearGroup]], found: dict[int, BlockFound]
) -> None:
    if job.scales is None or not job.recipe.run_process or job.scales_are_made:
        return
    weights = weights_hash(job.model_path)
    provenance = {"fingerprint": job.fingerprint, "weights": weights, **asdict(job.recipe)}
    save_scales(job.scales, to_entries(tables, found), provenance=provenance)


def _restart(bar: Any, groups: int, blocks: int) -> None:
    """Count the time left from here: what was found earlier and the samples took no such time."""
    if bar.disable:
        return
    bar.initial = bar.n = bar.last_print_n = min(groups * blocks, bar.total)
    bar.start_t = bar.last_print_t = time.time()
    bar.refresh()


def _make(job: Job, progress: bool, place: Place) -> tuple[dict[str, Any], Held | None]:
    """Do what is left of a run; return its notes, and what its result is to be compared with."""
    from tqdm import tqdm

    recipe = job.recipe
    team = place.team
    samples = encoded(recipe, job.samples, job.model_path)
    loaded = load(job.model_path, model=recipe.model)
    if "vision" in parse_scope(recipe.scope):
        settle_(loaded.model)
    adapter = loaded.adapter
    targets = adapter.targets(loaded.model, recipe.scope)
    check_weights(loaded.model, targets)
    check_others(loaded.model, targets)
    table_specs(recipe, loaded)  # refuses before the search
    held = hold_out(job, loaded, samples) if team.leads else None
    published = recipe.variant == "reference"
    tables = {
        i: adapter.groups(name, block, published=published)
        for i, name, block in adapter.numbered(loaded.model, recipe.scope)
    }
    total = sum(map(len, tables.values()))
    total += TICKS * len(tables) if recipe.compensation == "learned" else 0
    title = recipe.name or f"{recipe.method} w{recipe.w_bit}a{recipe.a_bit}"
    with tqdm(total=total, desc=title, unit="group", disable=not progress or not team.leads) as bar:
        begin = functools.partial(_restart, bar, max(map(len, tables.values()), default=0))
        found, chosen = quantise_(job, loaded, samples, tables, place, bar.update, begin)
        bar.update(total - bar.n)
    notes = _notes(job, loaded, found, samples) | chosen
    if team.leads:
        pack_tables_(recipe, loaded)
        _write_scales(job, tables, found)
        _write_model(job, loaded, notes, samples)
        job.journal.remove()
    team.gather(None)  # nobody goes on to another run before the results are there
    return notes, held


def _work(job: Job, progress: bool, place: Place) -> dict[str, Any]:
    """Do what is left of a run and check it; return its notes."""
    notes, held = _make(job, progress, place)  # its model is gone here: there is room for another
    return notes | verify_(job, held)


def _earlier_notes(job: Job) -> dict[str, Any]:
    if job.output is None:
        return {}
    if is_package(job.output):
        return dict(load_package(job.output, verify=False).manifest.metadata)
    notes: dict[str, Any] = read_json(job.output / NOTE)
    return notes


def _finished(job: Job) -> dict[str, Any]:
    """Return the notes of a finished run; verify its result if it ended before it could."""
    notes = _earlier_notes(job)
    if not job.recipe.verify or job.output is None or "verify" in notes:
        return notes
    loaded = load(job.model_path, model=job.recipe.model)
    held = hold_out(job, loaded, encoded(job.recipe, job.samples, job.model_path))
    del loaded  # room for the result
    return notes | verify_(job, held)


def quantize(recipe: QuantRecipe, *, progress: bool = True) -> QuantizeResult:
    """Quantise the language model of a vision-language model, and what else is in scope.

    Everything that can be checked is checked first. What is found is kept block by block, so a
    killed run goes on where it was; a finished run is not repeated. Files appear complete or not
    at all. With ``recipe.verify`` the result is then opened and compared with the float model; a
    result that is no longer the same model stays, with the reasons in ``verification``.

    Args:
        recipe: what to do.
        progress: show a progress bar with the time left.

    Raises:
        ConfigError: the recipe cannot be followed, or an output belongs to another recipe.
        ModelError: the model cannot be quantised; names the layer.
        DataError: the calibration data cannot be used; names the item.
        StorageError: an output cannot be written.
    """
    start = time.monotonic()
    with torch_threads(recipe.threads):
        team = join()
        job = prepare(recipe)
        skipped = team.first(job.is_finished)
        if skipped:
            notes = team.first(_finished(job) if team.leads else {})
        else:
            place = Place(Room(job.journal.scratch, job.fit.room, job.fit.limit), team)
            with place.room.guarded():
                notes = _work(job, progress, place)
    return QuantizeResult(
        recipe,
        job.fingerprint,
        job.output,
        job.scales,
        skipped,
        time.monotonic() - start,
        dict(notes.get("layer_errors", {})),
        list(notes.get("groups", [])),
        notes.get("verify"),
        notes.get("budget"),
    )
