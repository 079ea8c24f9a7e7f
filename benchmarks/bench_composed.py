"""An image through a composed tower, beside its two towers alone: float, bfloat16 and W8A8.

    python benchmarks/bench_composed.py [--size 224|336] [--threads 1] [--dtype bfloat16] [--out F]

CLIP ViT-L/14-336 looks at a DINOv2-large (257 or 577 tokens) after layers 6, 12, 18 and 24; one
image, random weights, open gates, all in turns in one process. In bfloat16 also with settled
fusions (`cmibq.models.settle_`) and with all linear layers of towers and fusions packed to 8 bits
per row and 8-bit activations per token, as ``generate`` runs them.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path[0] = str(Path(__file__).resolve().parents[1])

from cmibq.models import accelerate_, settle_
from cmibq.models.composed import CALMVisionTower
from cmibq.models.vision import generating
from cmibq.nn import convert_
from cmibq.quant import PerChannel, QuantSpec
from cmibq.recipe.calm import CALMConfig

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
Call = Callable[[], Tensor]


def make(size: int) -> CALMVisionTower:
    """Return the composed tower in float32."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    with torch.device("meta"):
        anchor = CLIPVisionModel(CLIPVisionConfig(**LARGE, intermediate_size=4096, image_size=336))
        other = Dinov2Model(Dinov2Config(**LARGE, image_size=size))
    for part in (anchor, other):
        fill_(part)
    tower: Any = CALMVisionTower(anchor, other, CALMConfig(attention_heads=16))
    for fusion in tower.calm_modules:
        nn.init.normal_(fusion.gate, std=0.02)
    return tower.requires_grad_(False).eval()  # type: ignore[no-any-return]


def fill_(tower: nn.Module) -> None:
    """Give a tower on the meta device random weights: a third of the time of its own ways."""
    tower.to_empty(device="cpu")
    for module in tower.modules():
        for name, p in module.named_parameters(recurse=False):
            if "norm" in type(module).__name__.lower() or name == "lambda1":
                nn.init.constant_(p, float(name != "bias"))
            else:
                nn.init.uniform_(p, -0.03, 0.03)
    for name, ids in tower.named_buffers():
        if name.endswith("position_ids"):
            ids.copy_(torch.arange(ids.numel()).view_as(ids))


def packed(tower: CALMVisionTower) -> Any:
    """Return a copy with W8A8 layers."""
    made: Any = settle_(copy.deepcopy(tower))
    spec = QuantSpec(8, PerChannel(0), symmetric=True)
    names = [n for n, m in made.named_modules() if type(m) is nn.Linear]
    convert_(made, dict.fromkeys(names, spec), 8)
    accelerate_(made)
    return made


def calls(tower: Any, size: int, dtype: torch.dtype) -> dict[str, Call]:
    """Return what is timed."""
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(1, 3, n, n, generator=g).to(dtype) for n in (336, size))
    both, half = {"anchor": x, "augmenting": y}, dtype == torch.bfloat16
    small = packed(tower) if half else None
    tower.to(dtype)
    made: dict[str, Call] = {
        "anchor": lambda: tower.anchor_tower(x).last_hidden_state,
        "augmenting": lambda: tower.augmenting_tower(y).last_hidden_state,
        "composed": lambda: tower(both).last_hidden_state,
    }
    if small is not None:
        small.to(dtype)
        settled: Any = settle_(copy.deepcopy(tower))
        made["composed, settled"] = lambda: settled(both).last_hidden_state
        made["composed W8A8"] = lambda: small(both).last_hidden_state
    return made


def measure(o: argparse.Namespace) -> dict[str, Any]:
    """Return one row."""
    times: dict[str, list[float]] = {}
    last: dict[str, Tensor] = {}
    with torch.inference_mode(), generating():
        every = calls(make(o.size), o.size, getattr(torch, o.dtype))
        for turn in range(o.rounds + 1):
            for name, call in every.items():
                start = time.perf_counter()
                last[name] = call().float()
                if turn:
                    times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
    ms = {n: round(statistics.median(t), 1) for n, t in times.items()}
    alone = ms["anchor"] + ms["augmenting"]
    row = {"size": o.size, "dtype": o.dtype, "threads": o.threads, "median_ms": ms}
    row["to_both_towers"] = {n: round(t / alone, 3) for n, t in ms.items() if "composed" in n}
    row["to_the_anchor"] = {n: round(t / ms["anchor"], 3) for n, t in ms.items() if "composed" in n}
    exact = last["composed"]
    row["relative_error"] = {
        n: round(float((t - exact).norm() / exact.norm()), 5)
        for n, t in last.items()
        if "composed," in n or "W8A8" in n
    }
    return row


def main() -> int:
    """Measure, print and file one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, help="JSON that the row is added to")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    row = measure(o)
    sys.stdout.write(json.dumps(row) + "\n")
    if o.out:
        rows = json.loads(o.out.read_text()) if o.out.exists() else []
        key = ("size", "dtype", "threads")
        rows = [r for r in rows if any(r[k] != row[k] for k in key)] + [row]
        o.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
