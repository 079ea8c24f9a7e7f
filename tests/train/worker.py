"""A training in a process of its own, which tests kill, or start twice as one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from cmibq.io.tensors import write_tensors
from cmibq.train import (
    AlignmentHead,
    Checkpoints,
    Journal,
    Loop,
    stage_one_pretrain,
    stage_two_finetune,
)
from cmibq.train.peers import join, rank, world
from tests.train.hosts import data, host, state

CPU = torch.device("cpu")


def own_rows(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return this process's part of every batch."""
    size = len(batches[0]["labels"]) // world()
    return [
        {k: v[rank() * size : (rank() + 1) * size] for k, v in batch.items()} for batch in batches
    ]


def train(folder: Path, *, steps: int, every: int, die: tuple[int, int], **more: Any) -> None:
    """Run both stages, each one pass; the process ends at a step if it is told to."""
    model = host(**more)
    head = AlignmentHead(model.cm_ibq.config.latent_dim, 4)
    batches = own_rows(data(steps, rows=4))
    checkpoints = Checkpoints(folder / "checkpoint", every=every)
    journal = Journal(folder / "log.jsonl")

    def watch(stage: int) -> Any:
        def on_step(step: int, log: dict[str, float]) -> None:
            if (stage, step) == die:
                os.kill(os.getpid(), 9)

        return on_step

    place = checkpoints.place()
    if place is None or place[0] == 1:
        optimiser = torch.optim.AdamW([*model.cm_ibq.parameters(), *head.parameters()], lr=1e-2)
        loop = Loop(checkpoints=checkpoints, journal=journal, on_step=watch(1), clip_norm=1.0)
        stage_one_pretrain(model.cm_ibq, batches, optimiser, CPU, alignment=head, loop=loop)
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-2)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    loop = Loop(checkpoints=checkpoints, journal=journal, on_step=watch(2), scheduler=rates)
    stage_two_finetune(model.cm_ibq, model, batches, optimiser, CPU, alignment=head, loop=loop)
    if rank() == 0:
        with open(folder / "end.safetensors", "wb") as file:
            found = {f"model.{k}": v for k, v in state(model).items()}
            write_tensors(file, found | {f"head.{k}": v for k, v in state(head).items()})


if __name__ == "__main__":
    told = json.loads(sys.argv[2])
    torch.set_num_threads(1)
    join(timeout=60)
    train(Path(sys.argv[1]), **{**told, "die": tuple(told["die"])})
