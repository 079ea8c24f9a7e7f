"""A CALM training in a process of its own, which tests kill, or start twice as one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.io.tensors import write_tensors
from cmibq.models.composed import CALMVisionTower
from cmibq.recipe.calm import CALMConfig
from cmibq.train import Checkpoints, Journal, Loop
from cmibq.train.calm import CALMMonitor, train_calm
from cmibq.train.peers import join, rank, world
from tests.models.towers import clip, dino, pixels
from tests.train.worker import own_rows

CPU = torch.device("cpu")


class Host(nn.Module):
    """A composed tower and a classification of its mean patch."""

    def __init__(self, strategy: str) -> None:
        super().__init__()
        config = CALMConfig(composition_layers=2, attention_heads=4, fusion_strategy=strategy)
        towers = clip(num_hidden_layers=2), dino(num_hidden_layers=2)
        torch.manual_seed(0)
        self.tower = CALMVisionTower(*towers, config)
        self.head = nn.Linear(32, 3)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        seen = self.tower({"anchor": batch["anchor"], "augmenting": batch["augmenting"]})
        logits = self.head(seen.last_hidden_state.mean(1))
        return {"loss": nn.functional.cross_entropy(logits, batch["labels"])}


def data(steps: int, rows: int) -> list[dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(5)
    whole = pixels(steps * rows)
    whole["labels"] = torch.randint(3, (steps * rows,), generator=rng)
    parts = {n: v.split(rows) for n, v in whole.items()}
    return [{n: v[i] for n, v in parts.items()} for i in range(steps)]


def train(folder: Path, *, steps: int, every: int, die: tuple[int, int], **more: Any) -> None:
    """Run both stages: the fusions alone, then with the head; die at a step if told to."""
    host = Host(more.get("strategy", "gated_attention"))
    batches = own_rows(data(steps * more.get("accumulate", 1), more.get("rows", 4)))
    checkpoints = Checkpoints(folder / "checkpoint", every=every)
    place = checkpoints.place()
    for stage in (1, 2) if place is None or place[0] == 1 else (2,):
        trained = list(host.tower.calm_modules.parameters())
        trained += list(host.head.parameters()) if stage == 2 else []
        optimiser = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
        monitor = CALMMonitor(folder / "monitor.jsonl", host.tower, stage)

        def on_step(step: int, log: dict[str, float], stage: int = stage) -> None:
            if (stage, step) == die:
                os.kill(os.getpid(), 9)

        loop = Loop(
            accumulate=more.get("accumulate", 1),
            clip_norm=1.0,
            autocast=torch.bfloat16 if more.get("autocast") else None,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps),
            checkpoints=checkpoints,
            journal=Journal(folder / "log.jsonl"),
            on_step=on_step,
            watch=monitor,
            gradients=monitor.gradients,
        )
        train_calm(host, host.tower, batches, optimiser, CPU, stage=stage, loop=loop)
    if rank() == 0:
        with open(folder / "end.safetensors", "wb") as file:
            write_tensors(file, {n: p.detach() for n, p in host.named_parameters()})


if __name__ == "__main__":
    told = json.loads(sys.argv[2])
    torch.set_num_threads(1)
    join(timeout=60)
    assert world() in (1, 2)
    train(Path(sys.argv[1]), **{**told, "die": tuple(told["die"])})
