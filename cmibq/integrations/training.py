"""Both stages of CM-IBQ on a Hugging Face model and data in LLaVA's format."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cmibq import models
from cmibq.data import CalibSample, encode
from cmibq.fileio import atomic_dir, write_json
from cmibq.integrations.batches import Batches, Collected
from cmibq.integrations.bottleneck import attach_cm_ibq, collect
from cmibq.integrations.bridge import Bridge, BridgeConfig
from cmibq.integrations.hostloss import HostLoss, host_parameters, recompute_
from cmibq.integrations.job import Job, OnStep, check_places, finished, read_shown
from cmibq.ops.library import torch_threads
from cmibq.recipe import parse_model_args
from cmibq.recipe.train import TrainRecipe
from cmibq.train import (
    AlignmentHead,
    parameter_groups,
    stage_one_pretrain,
    stage_two_finetune,
)
from cmibq.train.diagnostics import BitRecorder, diagnose, entropy_bits
from cmibq.train.peers import join, rank

__all__ = ["OnStep", "check", "read", "train_cm_ibq"]

_CPU = torch.device("cpu")


def check(recipe: TrainRecipe) -> None:
    """Refuse, before any work, what cannot run.

    Raises:
        ConfigError: a folder is not named, or holds something else than a run of this recipe.
    """
    check_places(recipe)


def read(recipe: TrainRecipe) -> list[CalibSample]:
    """Return the conversations with images, all of them opened once.

    Raises:
        DataError: an item or an image cannot be used, or there is none with an image.
    """
    return read_shown(recipe, "CM-IBQ codes image features")


@dataclass(frozen=True)
class _Job(Job):
    """What both stages share."""

    recipe: TrainRecipe
    bridge: Bridge
    head: AlignmentHead | None

    def recorder(self, stage: int, steps: int) -> BitRecorder:
        return BitRecorder(self.out / "bits.jsonl", stage, every=max(steps // 100, 1))


def _stage_one(job: _Job) -> None:
    r, layer = job.recipe, job.bridge.layer
    trained = [*layer.parameters(), *(job.head.parameters() if job.head else ())]
    groups = parameter_groups(layer, trained, r.stage1_lr, r.scale_lr)
    optimiser = torch.optim.AdamW(groups, weight_decay=r.weight_decay)
    model = job.loaded.model.eval()
    if job.bridge.task_vectors is not None:  # stage two trains them: they are not the layer's
        job.bridge.task_vectors.requires_grad_(False)
    data = Collected(job.batches(r.stage1_steps, 1), model, collect, _CPU)
    watch = job.recorder(1, r.stage1_steps)
    loop = job.loop(1, optimiser, r.stage1_steps, watch=watch)
    stage_one_pretrain(
        layer, data, optimiser, _CPU, r.gamma, host=model, alignment=job.head, loop=loop
    )


def _stage_two(job: _Job) -> None:
    r, model = job.recipe, job.loaded.model
    beside = host_parameters(job.loaded, r.parts)
    for p in (*beside, *job.bridge.parameters()):
        p.requires_grad_(True)
    layer, own = job.bridge.layer, job.bridge.parameters()
    groups = parameter_groups(layer, own, r.stage2_lr, r.scale_lr)
    groups += [groups[0] | {"params": beside, "lr": r.host_lr}] if beside else []
    optimiser = torch.optim.AdamW(groups, weight_decay=r.weight_decay)
    if r.gradient_checkpointing:
        recompute_(model)
    watch = job.recorder(2, r.stage2_steps)
    loop = job.loop(2, optimiser, r.stage2_steps, watch=watch)
    data = job.batches(r.stage2_steps, 2)
    wrapped = HostLoss(model, job.bridge)
    stage_two_finetune(layer, wrapped, data, optimiser, _CPU, alignment=job.head, loop=loop)


def _facts(job: _Job) -> dict[str, Any]:
    """Return what figures need beside the log."""
    answers = [str(s.ids[s.answer].tolist()) for s in job.samples]
    tokens = sum(int(s.answer.sum()) for s in job.samples) / len(job.samples)
    return {
        "format": 1,
        "identity": job.recipe.identity,
        "recipe": asdict(job.recipe),
        "answer_bits": entropy_bits(answers),
        "answer_tokens": tokens,
        "elements": int(job.samples[0].vision.sum()) * job.bridge.layer.config.latent_dim,
        "samples": len(job.samples),
    }


def _diagnose(job: _Job) -> dict[str, Any]:
    """Measure the trained layer on the first conversations."""
    r = job.recipe
    rows = Batches(
        job.samples[: r.n_diagnose],
        job.loaded.processor,
        size=min(r.batch_size, r.n_diagnose),
        count=-(-min(r.n_diagnose, len(job.samples)) // min(r.batch_size, r.n_diagnose)),
        side=job.loaded.adapter.padding,
    )
    features = list(Collected(rows, job.loaded.model.eval(), collect, _CPU))
    return diagnose(job.bridge.layer.eval(), features)


def _start(recipe: TrainRecipe, on_step: OnStep | None) -> _Job:
    samples = read(recipe)
    loaded = models.load(parse_model_args(recipe.model_args), model=recipe.model)
    loaded.model.requires_grad_(False)
    host: Any = loaded.model
    width = int(host.get_input_embeddings().embedding_dim)
    torch.manual_seed(recipe.seed)
    config = recipe.layer(width)
    options = BridgeConfig(config, task=recipe.task, prompt_tokens=recipe.prompt_tokens)
    bridge = attach_cm_ibq(loaded.model, options)
    encoded = encode(samples, loaded.processor)
    return _Job(recipe, loaded, encoded, on_step, bridge, bridge.alignment)


def _finish(job: _Job) -> dict[str, Any]:
    """Write model, diagnostics and what was done; of several processes the first one does."""
    job.bridge.layer.finalize_()
    job.bridge.add_loss = job.bridge.find_terms = True
    job.loaded.model.eval()
    told = _facts(job)
    if rank() == 0:
        if job.recipe.n_diagnose:
            write_json(job.out / "diagnostics.json", _diagnose(job))
        with atomic_dir(job.out / "model", overwrite=True) as folder:
            models.save_float(job.loaded, folder)
        write_json(job.out / "run.json", told | {"done": True})
    return told


def train_cm_ibq(recipe: TrainRecipe, *, on_step: OnStep | None = None) -> bool:
    """Run both stages, or what is left of them, and write the result.

    ``output_path`` then has ``model`` (a folder that ``from_pretrained`` opens once
    ``cmibq.integrations.transformers`` is imported), ``log.jsonl``, ``bits.jsonl``,
    ``diagnostics.json`` and ``run.json``. Killed at any moment, the same call goes on from the last
    checkpoint and ends with the same parameters.

    Args:
        recipe: what to do.
        on_step: told of every step.

    Returns:
        Whether there was work to do.

    Raises:
        ConfigError: the recipe cannot run; see `check`.
        DataError: data cannot be used, or a loss is not finite.
        ModelError: the model is not supported.
    """
    check(recipe)
    if finished(recipe):
        return False
    told = Path(recipe.output_path) / "run.json"
    join()
    with torch_threads(recipe.threads or torch.get_num_threads()):
        job = _start(recipe, on_step)
        if rank() == 0:
            write_json(told, _facts(job) | {"done": False})
        place = job.checkpoints().place()
        if recipe.stage1_steps and (place is None or place[0] == 1):
            _stage_one(job)
        _stage_two(job)
        _finish(job)
    return True
