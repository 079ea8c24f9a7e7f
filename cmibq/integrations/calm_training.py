"""Both stages of CALM on a Hugging Face model, a second tower and data in LLaVA's format."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmibq import models
from cmibq.data import encode
from cmibq.eval.footprint import PeakMemory, peak_memory
from cmibq.fileio import atomic_dir, read_json, write_json
from cmibq.integrations.batches import Batches
from cmibq.integrations.calm import attach_calm
from cmibq.integrations.calm_plan import choose_, describe, numbers, plan, tower_folder
from cmibq.integrations.calm_stage1 import (
    STAGE1,
    check_fusions,
    holds,
    stage1_of,
    take_fusions_,
    write_fusions,
)
from cmibq.integrations.calm_start import added_ms, start_losses
from cmibq.integrations.hostloss import recompute_, shared_loss
from cmibq.integrations.job import Job, OnStep, check_places, finished, read_shown
from cmibq.models.composed import CALMVisionTower
from cmibq.models.composed_files import open_image_processor, open_tower
from cmibq.models.feature_cache import FeatureCache
from cmibq.ops.library import torch_threads
from cmibq.recipe import format_size, parse_model_args
from cmibq.recipe.train_calm import CALMRecipe
from cmibq.train.calm import CALMMonitor, train_calm
from cmibq.train.loop import Found
from cmibq.train.peers import join, rank, world

__all__ = ["check", "train_calm_recipe"]

_logger = logging.getLogger(__name__)
_CPU = torch.device("cpu")

_FOUND = ("start_losses", "anchor_ms", "added_ms", "peak_bytes_1", "peak_bytes_2")
"""What a run measures once and keeps when it goes on."""

Say = Callable[[str], None]
Begin = Callable[[int, int], None]
"""Told a stage and its steps."""


def check(recipe: CALMRecipe) -> dict[int, str]:
    """Refuse, before any weight is read, what cannot run; return the table of every stage.

    Raises:
        ConfigError: a folder is not named or holds something else than a run of this recipe, heads
            do not divide the width, stage two has no stage one to start from.
        ModelError: a model folder is missing or not supported.
    """
    check_places(recipe, augmenting_model=recipe.augmenting_model, stage1_path=recipe.stage1_path)
    tables = plan(recipe)
    if recipe.stage == 2:
        check_fusions(stage1_of(recipe))
    return tables


class _TaskLoss(nn.Module):
    """A host model as `train_calm` calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        output = self.model(**batch, use_cache=False)
        return {"loss": shared_loss(output["loss"], batch["labels"])}


@dataclass(frozen=True)
class _Job(Job):
    """What both stages share."""

    recipe: CALMRecipe
    tower: CALMVisionTower
    say: Say
    on_begin: Begin | None = None
    found: dict[str, Any] = field(default_factory=dict)

    def write(self, done: list[int]) -> None:
        """Write what is known of the run."""
        if rank() == 0:
            told = {"format": 1, "system": "calm", "identity": self.recipe.identity}
            told |= {"recipe": asdict(self.recipe), "samples": len(self.samples)}
            places: dict[str, Any] = {"layers": self.tower.layers, "sources": self.tower.sources}
            places["parameters"] = numbers(self.loaded.model, self.tower)
            write_json(self.out / "run.json", told | places | self.found | {"done": done})


def _start(recipe: CALMRecipe, on_step: OnStep | None, begin: Begin | None, say: Say) -> _Job:
    samples = read_shown(recipe, "a vision tower is trained on images")
    loaded = models.load(parse_model_args(recipe.model_args), model=recipe.model)
    folder = tower_folder(recipe.augmenting_model)
    augmenting, own = open_tower(folder), open_image_processor(folder)
    if own is None:
        _logger.warning(
            "%s has no image processor (preprocessor_config.json): the augmenting tower gets the"
            " anchor's pixels, with the anchor's mean and deviation, in its own size",
            folder,
        )
    torch.manual_seed(recipe.seed)
    tower = attach_calm(
        *(loaded.model, augmenting, recipe.tower),
        processor=None if own is None else loaded.processor,
        augmenting_processor=own,
    )
    encoded = encode(samples, loaded.processor)
    told = Path(recipe.output_path) / "run.json"
    known = read_json(told) if told.exists() else {}
    found = {k: known[k] for k in _FOUND if known.get("identity") == recipe.identity and k in known}
    return _Job(recipe, loaded, encoded, on_step, tower, say, begin, found)


def _measure(job: _Job) -> None:
    """Tell loss and time of the untrained fusions, and warn of what harms the anchor."""
    r = job.recipe
    count = min(r.n_measure, len(job.samples)) // world()
    if not count:
        return
    size = min(r.batch_size, count)
    rows = Batches(
        job.samples,
        job.loaded.processor,
        size=size,
        count=count // size,
        seed=2 * r.seed,
        side=job.loaded.adapter.padding,
    )
    found = start_losses(job.loaded.model, job.tower, rows, seed=r.seed)
    anchor, own = found["anchor"], found[r.fusion_strategy]
    shown = {n: "does not fit" if v is None else f"{v:.4f}" for n, v in found.items()}
    job.say(
        f"loss before training, nats per token: {', '.join(f'{n} {v}' for n, v in shown.items())}"
    )
    if own is not None and own != anchor:
        _logger.warning(
            "%s changes the frozen anchor before anything is trained: loss %.4f instead of %.4f"
            " nats per token; gated_attention starts as the anchor",
            *(r.fusion_strategy, own, anchor),
        )
    alone, added = added_ms(job.tower, rows.batch(0))
    job.say(f"vision: {alone:.2f} ms per image for the anchor, {added:.2f} ms added by composing")
    job.found.update(start_losses=found, anchor_ms=alone, added_ms=added)


def _groups(job: _Job, own: list[nn.Parameter], beside: list[nn.Parameter]) -> list[dict[str, Any]]:
    r = job.recipe
    groups = [{"params": own, "lr": r.learning_rate}, {"params": beside, "lr": r.host_lr}]
    return [group for group in groups if group["params"]]


def _stage(job: _Job, stage: int) -> None:
    """Run a stage, or what is left of it."""
    r, model = job.recipe, job.loaded.model
    own, beside = choose_(job.loaded, job.tower, r, stage)
    steps = r.steps(stage, len(job.samples), world())
    job.say(f"stage {stage}, {steps} steps\n{describe(model, job.tower)}")
    optimiser = torch.optim.AdamW(_groups(job, own, beside), weight_decay=r.weight_decay)
    if r.gradient_checkpointing:
        recompute_(model)
    every = max(steps // 100, 1)
    monitor = CALMMonitor(job.out / "monitor.jsonl", job.tower, stage, every=every)
    constant = (lambda step: 1.0) if r.scheduler == "constant" else None
    if job.on_begin is not None:
        job.on_begin(stage, steps)
    data = job.batches(steps, stage)
    with peak_memory() as peak:
        loop = job.loop(
            *(stage, optimiser, steps),
            factor=constant,
            watch=_first(job, stage, monitor, peak),
            gradients=monitor.gradients,
        )
        train_calm(_TaskLoss(model), job.tower, data, optimiser, _CPU, stage=stage, loop=loop)


def _first(job: _Job, stage: int, monitor: CALMMonitor, peak: PeakMemory) -> Any:
    """Return what is called in every step: the monitor, and after the first step its memory."""
    told = set[int]()

    def watch(step: int, found: Found) -> None:
        monitor(step, found)
        if not told:
            told.add(step)
            job.found[f"peak_bytes_{stage}"] = size = peak.so_far()
            job.say(f"stage {stage}: at most {format_size(size)} of memory in the first step")

    return watch


def train_calm_recipe(
    recipe: CALMRecipe,
    *,
    on_step: OnStep | None = None,
    on_begin: Begin | None = None,
    say: Say | None = None,
) -> bool:
    """Run the stages that are asked for, or what is left of them, and write the result.

    ``output_path`` then has ``model``, ``stage1`` (the fusions that stage one leaves for stage
    two), ``log.jsonl``, ``monitor.jsonl`` and ``run.json``. Killed at any moment, the same call
    goes on from the last checkpoint and ends with the same parameters.

    Args:
        recipe: what to do.
        on_step: told of every step.
        on_begin: told of every stage and the number of its steps.
        say: told tables and figures as text; None = the log.

    Returns:
        Whether there was work to do.

    Raises:
        ConfigError: the recipe cannot run; see `check`.
        DataError: data cannot be used, or a loss is not finite.
        ModelError: a model is not supported.
    """
    check(recipe)
    done = list(finished(recipe) or [])
    if not [stage for stage in recipe.wanted if stage not in done]:
        return False
    join()
    with torch_threads(recipe.threads or torch.get_num_threads()):
        job = _start(recipe, on_step, on_begin, say or _logger.info)
        job.write(done)
        _run(job, done)
    return True


def _run(job: _Job, done: list[int]) -> None:
    recipe, place = job.recipe, job.checkpoints().place()
    if place is None and not holds(job.out / STAGE1, recipe.identity):
        _measure(job)
    if recipe.feature_cache:  # after the milliseconds that composing adds were measured
        job.tower.cache = FeatureCache(recipe.feature_cache)
    if 1 in recipe.wanted and not holds(job.out / STAGE1, recipe.identity):
        _stage(job, 1)
        write_fusions(job.out / STAGE1, job.loaded.model, job.tower, recipe.identity)
    if 2 in recipe.wanted:
        _wait()
        job.say(take_fusions_(stage1_of(recipe), job.loaded.model, job.tower))
        _stage(job, 2)
    job.loaded.model.eval()
    if rank() == 0:
        with atomic_dir(job.out / "model", overwrite=True) as folder:
            models.save_float(job.loaded, folder)
    job.write(sorted({*done, *recipe.wanted}))


def _wait() -> None:
    """Let the other processes wait until the first one has written."""
    if world() > 1:
        torch.distributed.barrier()
