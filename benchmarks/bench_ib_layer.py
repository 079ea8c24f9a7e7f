"""One training step of CM-IBQ's layer: ours beside the same layer in torch, eager and compiled.

    python benchmarks/bench_ib_layer.py [--threads 1] [--rate discrete|gaussian] [--half] [--out F]

Forward, losses and backward of B = 8, T = 576, D = L = 1024, without the optimiser, in turns in one
process; memory is recycled (set as `benchmarks/run.py` does, or the peers are timed with page
faults). The limit: products at the peak of float32 (bfloat16 with ``--half``), all else free.
Also what autograd keeps from forward to backward: parameters and features do not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import probes
from benchmarks.peers.ib_layer import torch_loss
from cmibq.nn.ib_layer import CMIBQConfig, IBQuantizedLayer
from cmibq.train.losses import composite

BATCH, TOKENS, WIDTH, TARGET = 8, 576, 1024, 4.3
Loss = Callable[[], Tensor]


def our_loss(layer: IBQuantizedLayer, x: Tensor) -> Tensor:
    """Return the loss of the layer as `stage_one_pretrain` has it."""
    r = layer.run(x, None, target_bits=TARGET)
    names = ("quantised", "reconstructed", "mu", "logvar", "bit_allocation", "rate")
    found = dict(zip(names, r, strict=False)) | {"features": x}
    return composite(layer.config, found, TARGET).total


def kept_bytes(loss: Loss, free: set[int]) -> int:
    """Return the bytes of what autograd keeps, each memory once, without that in `free`."""
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in free:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    held = []  # nothing may be given back and taken again meanwhile

    def pack(t: Tensor) -> Tensor:
        held.append(t)
        return note(t)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        held.append(loss())
    return sum(kept.values())


def calls(layer: IBQuantizedLayer, x: Tensor, half: bool, compiled: bool) -> dict[str, Loss]:
    """Return the loss of ours and of the peers, under autocast with `half`."""

    def cast(loss: Callable[..., Tensor], *more: Any) -> Loss:
        def run() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return loss(layer, x, *more)

        return run

    made = {"ours": cast(our_loss), "torch eager": cast(torch_loss, TARGET)}
    if compiled:
        made["torch.compile"] = cast(torch.compile(torch_loss, dynamic=False), TARGET)
    return made


def timed(steps: dict[str, Loss], rounds: int) -> dict[str, list[float]]:
    """Return milliseconds of forward and backward, in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, loss in steps.items():
            start = time.perf_counter()
            loss().backward()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main() -> int:
    """Measure, print and file one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", default="discrete", choices=("discrete", "gaussian"))
    parser.add_argument("--half", action="store_true", help="under autocast to bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="JSON that the row is added to")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    layer = IBQuantizedLayer(CMIBQConfig(feature_dim=WIDTH, rate=o.rate)).train()
    x = torch.randn(BATCH, TOKENS, WIDTH)
    free = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), x)}
    steps = calls(layer, x, o.half, not o.no_compile)
    memory = {n: kept_bytes(s, free) for n, s in steps.items() if n != "torch.compile"}
    times = timed(steps, o.rounds)
    products = 5 if o.rate == "discrete" else 7
    flops = 2.0 * products * BATCH * TOKENS * WIDTH * WIDTH
    peak = (lambda p: p.bf16(flops)) if o.half else (lambda p: p.fma(flops))
    rates = {n: probes.measure(n, o.threads) for n in probes.needed(peak)}
    row = {
        "rate": o.rate,
        "half": o.half,
        "threads": o.threads,
        "median_ms": {n: round(statistics.median(t), 1) for n, t in times.items()},
        "least_ms": {n: round(min(t), 1) for n, t in times.items()},
        "limit_ms": round(peak(probes.Probes(rates.__getitem__)), 1),
        "kept_mb": {n: round(v / 1e6, 1) for n, v in memory.items()},
    }
    ours = row["median_ms"]["ours"]
    row["ratio"] = {n: round(v / ours, 2) for n, v in row["median_ms"].items()}
    sys.stdout.write(json.dumps(row) + "\n")
    if o.out:
        rows = json.loads(o.out.read_text()) if o.out.exists() else []
        key = ("rate", "half", "threads")
        rows = [r for r in rows if any(r[k] != row[k] for k in key)] + [row]
        o.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
