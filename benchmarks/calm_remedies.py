"""What the published remedies for CALM trainings do, on small models: docs/troubleshooting.md.

    python benchmarks/calm_remedies.py memory          # batch and checkpointing, a process each
    python benchmarks/calm_remedies.py rates           # learning rates too large, and smaller ones
    python benchmarks/calm_remedies.py layers          # 2, 4, 6 and 8 fusions

Each prints one JSON object per line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.eval.footprint import peak_memory
from cmibq.integrations.batches import warm_cosine
from cmibq.models.composed import CALMVisionTower
from cmibq.recipe.calm import CALMConfig
from cmibq.train import Loop
from cmibq.train.calm import train_calm

CPU = torch.device("cpu")
Batch = dict[str, Tensor]


def large() -> tuple[nn.Module, nn.Module]:
    """Return random towers of ViT-S shape."""
    import transformers as hf

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 12, "image_size": 224}
    shape["num_attention_heads"] = 6
    clip = hf.CLIPVisionConfig(**shape, intermediate_size=1536, patch_size=16)
    return hf.CLIPVisionModel(clip), hf.Dinov2Model(hf.Dinov2Config(**shape, patch_size=14))


def small() -> tuple[nn.Module, nn.Module]:
    """Return random towers of 12 layers of width 48, wide enough to tell images apart."""
    import transformers as hf

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 12, "num_attention_heads": 4}
    shape |= {"image_size": 16, "patch_size": 8}
    clip = hf.CLIPVisionConfig(**shape, intermediate_size=96, initializer_range=0.2)
    towers = (
        hf.CLIPVisionModel(clip),
        hf.Dinov2Model(hf.Dinov2Config(**shape, initializer_range=0.1)),
    )
    for module in (m for tower in towers for m in tower.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(module.weight, std=0.7 / module.in_features**0.5)
    return towers


def memory(batch: int, checkpointing: bool) -> dict[str, Any]:
    """Measure one forward and backward pass."""
    config = CALMConfig(attention_heads=6, gradient_checkpointing=checkpointing)
    tower = CALMVisionTower(*large(), config).train()
    pixels = torch.randn(batch, 3, 224, 224)
    with peak_memory() as before:
        pass
    begin = time.perf_counter()
    with peak_memory() as peak:
        tower(pixels).last_hidden_state.square().mean().backward()
    seconds = time.perf_counter() - begin
    more = {"bytes": peak.bytes - before.bytes, "seconds": round(seconds, 2)}
    return {"batch": batch, "checkpointing": checkpointing} | more


def batches(count: int, size: int, seed: int) -> list[Batch]:
    """Return pictures of four patches: the anchor sees a mark on one, the other tower four hues.

    What is asked for is the hue of the patch with the mark.
    """
    rng = torch.Generator().manual_seed(seed)
    hues = 1.5 * torch.eye(4)[:, :3] - 0.5
    made = []
    for _ in range(count):
        at = torch.randint(4, (size,), generator=rng)
        hue = torch.randint(4, (size, 4), generator=rng)
        grey = 0.3 * torch.randn(size, 1, 16, 16, generator=rng).repeat(1, 3, 1, 1)
        mark = functional.one_hot(at, 4).float().view(size, 1, 2, 2)
        spot = functional.pad(torch.ones(4, 4), (2, 2, 2, 2)).repeat(2, 2)
        grey += 2 * spot * functional.interpolate(mark, scale_factor=8)
        tiles = hues[hue].mT.reshape(size, 3, 2, 2)
        colour = 0.3 * torch.randn(size, 3, 16, 16, generator=rng)
        colour += functional.interpolate(tiles, scale_factor=8)
        labels = hue[torch.arange(size), at]
        made.append({"anchor": grey, "augmenting": colour, "labels": labels})
    return made


class Host(nn.Module):
    """A composed tower, and a linear layer on its mean patch."""

    def __init__(self, config: CALMConfig) -> None:
        super().__init__()
        towers = small()
        torch.manual_seed(1)
        self.tower, self.head = CALMVisionTower(*towers, config), nn.Linear(48, 4)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss."""
        pixels = {name: batch[name] for name in ("anchor", "augmenting")}
        seen = self.tower(pixels).last_hidden_state[:, 1:].mean(1)
        return {"loss": functional.cross_entropy(self.head(seen / seen.std()), batch["labels"])}


def train(layers: int, strategy: str, rate: float, steps: int) -> dict[str, Any]:
    """Train fusions and head; tell the loss at the end, and how much it rose on the way."""
    torch.set_num_threads(1)
    host = Host(CALMConfig("", "", layers, 4, strategy))
    trained = [*host.tower.calm_modules.parameters(), *host.head.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, warm_cosine(steps, 0.03))
    loop = Loop(clip_norm=1.0, scheduler=scheduler)
    log = train_calm(host, host.tower, batches(steps, 32, 3), optimiser, CPU, loop=loop)
    losses = [r["train_loss"] for r in log]
    with torch.no_grad():
        fresh = sum(float(host.eval()(b)["loss"]) for b in batches(8, 64, 99)) / 8
    told = {"layers": layers, "strategy": strategy, "rate": rate, "steps": steps}
    return told | {"worst": round(max(losses), 3), "fresh": round(fresh, 3)}


def main(words: list[str]) -> None:
    """Run one of the three, or one measurement of memory."""
    if words[0] == "memory" and len(words) == 1:
        for case in ("32 0", "32 1", "16 0", "16 1", "8 0", "8 1"):
            subprocess.run([sys.executable, __file__, "memory", *case.split()], check=True)
    elif words[0] == "memory":
        print(json.dumps(memory(int(words[1]), words[2] == "1")), flush=True)
    elif words[0] == "rates":
        for rate in (1e-1, 5e-2, 2.5e-2, 1e-2, 5e-3):
            print(json.dumps(train(4, "cross_attention", rate, 150)), flush=True)
    else:
        for layers in (2, 4, 6, 8):
            print(json.dumps(train(layers, "gated_attention", 3e-3, 300)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
