"""Peak memory of CLIP ViT-L/14-336 composed with DINOv2-large: a forward, and a training step.

    python -m benchmarks.calm_memory [--images 4] [--no-checkpointing]

Weights are random (shapes are what counts) and float32. What is printed is the peak resident size
of the process, everything included, against a bar of 8 GiB.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import torch

from cmibq.models.composed import CALMVisionTower
from cmibq.recipe.calm import CALMConfig

BAR = 8.0
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}


def towers() -> tuple[Any, Any]:
    """Return a CLIP ViT-L/14-336 and a DINOv2-large with random weights."""
    import transformers as hf

    clip = hf.CLIPVisionConfig(**_LARGE, intermediate_size=4096, image_size=336, patch_size=14)
    dino = hf.Dinov2Config(**_LARGE, mlp_ratio=4, image_size=518, patch_size=14)
    return hf.CLIPVisionModel(clip), hf.Dinov2Model(dino)


def peak() -> float:
    """Return the peak resident size of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Compose the towers, run a forward and a training step, and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--no-checkpointing", action="store_true")
    told = parser.parse_args()
    config = CALMConfig(
        attention_heads=16, gradient_checkpointing=not told.no_checkpointing, select_layer=-2
    )
    tower = CALMVisionTower(*towers(), config).train()
    trained = sum(p.numel() for p in tower.calm_modules.parameters())
    share = 100 * trained / sum(p.numel() for p in tower.parameters())
    pixels = {
        "anchor": torch.randn(told.images, 3, 336, 336),
        "augmenting": torch.randn(told.images, 3, 518, 518),
    }
    print(f"towers built: {peak():.2f} GiB; {trained} parameters trained ({share:.2f} %)")
    start = time.perf_counter()
    with torch.no_grad():
        tower(pixels, output_hidden_states=True)
    print(f"forward, {told.images} images: {peak():.2f} GiB, {time.perf_counter() - start:.1f} s")
    optimiser = torch.optim.AdamW(tower.calm_modules.parameters(), lr=1e-4)
    start = time.perf_counter()
    made = tower(pixels, output_hidden_states=True).hidden_states[config.select_layer]
    made.square().mean().backward()
    optimiser.step()
    missing = [n for n, p in tower.calm_modules.named_parameters() if p.grad is None]
    found = peak()
    print(
        f"training step, {told.images} images, checkpointing {config.gradient_checkpointing}:"
        f" {found:.2f} GiB (bar {BAR:.0f}), {time.perf_counter() - start:.1f} s,"
        f" {len(missing)} parameters without a gradient"
    )


if __name__ == "__main__":
    main()
