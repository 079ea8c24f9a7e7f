"""One step of a fusion module of CALM: ours beside the same module in torch, eager and compiled.

    python benchmarks/bench_fusion.py [--strategy S] [--keys 257|577] [--threads 1] [--half]

Forward and backward of B = 4, Lq = 577, D = 1024, 16 heads with the gradients of both features and
all parameters, in turns in one process; memory is recycled (set as `benchmarks/run.py` does, or the
peers are timed with page faults). ``--memory``: bytes of a pass beyond what was there, each in a
fresh process with malloc as installed; the module with ``recompute = True``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.load import own_bytes
from cmibq.fusion import build_fusion
from cmibq.recipe.calm import CALMConfig

BATCH, ROWS, WIDTH, HEADS = 4, 577, 1024, 16
Block = Callable[[Tensor, Tensor], Tensor]


def make(strategy: str) -> Any:
    """Return our module with its gate, if it has one, open."""
    torch.manual_seed(0)
    config = CALMConfig(fusion_strategy=strategy, attention_heads=HEADS)
    module: Any = build_fusion(WIDTH, WIDTH, config)
    if strategy == "gated_attention":
        nn.init.normal_(module.gate, std=0.02)
    return module


def core(module: Any) -> Any:
    """Return the part with projection and attention."""
    return getattr(module, "attention", module)


def finished(module: Any, x: Tensor, added: Tensor) -> Tensor:
    """Return what the module makes of what its attention gives."""
    if hasattr(module, "gate"):
        return x + torch.tanh(30.0 * module.gate) * added
    made: Tensor = module.norm(x + added)
    return made


def as_printed(module: Any) -> Block:
    """Return the module as the seed prints it, with `nn.MultiheadAttention`."""

    def block(x: Tensor, y: Tensor) -> Tensor:
        kv = core(module).projection(y)
        return finished(module, x, core(module).cross_attention(x, kv, kv)[0])

    return block


def with_sdpa(module: Any) -> Block:
    """Return the module with `scaled_dot_product_attention`, which keeps no attention weights."""
    inner = core(module).cross_attention

    def split(t: Tensor) -> Tensor:
        return t.view(*t.shape[:2], HEADS, -1).transpose(1, 2)

    def block(x: Tensor, y: Tensor) -> Tensor:
        kv = core(module).projection(y)
        parts = zip(
            (x, kv, kv), inner.in_proj_weight.chunk(3), inner.in_proj_bias.chunk(3), strict=True
        )
        q, k, v = (split(functional.linear(t, w, b)) for t, w, b in parts)
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return finished(module, x, inner.out_proj(seen))

    return block


def step(block: Block, module: nn.Module, keys: int, half: bool) -> Callable[[], object]:
    """Return a forward and backward pass."""
    torch.manual_seed(1)
    x, y, g = (torch.randn(BATCH, n, WIDTH) for n in (ROWS, keys, ROWS))
    wanted = [x.requires_grad_(), y.requires_grad_(), *module.parameters()]

    def call() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = block(x, y)
        return torch.autograd.grad(out, wanted, g.to(out.dtype))

    return call


def timed(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return milliseconds, in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, call in steps.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def extra_bytes(who: str, strategy: str, keys: int, both: bool) -> int:
    """Return the peak of resident memory in a pass, less what was there before it."""
    module = make(strategy)
    module.recompute = True
    block = module if who == "ours" else with_sdpa(module)

    def run(rows: int, count: int) -> None:
        x, y = (torch.randn(count, n, WIDTH, requires_grad=both) for n in (rows, keys))
        g = torch.randn(count, rows, WIDTH)
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        nonlocal before
        before = own_bytes("VmRSS")
        with torch.set_grad_enabled(both):
            out = block(x, y)
        if both:
            torch.autograd.grad(out, [x, y, *module.parameters()], g)

    before = 0
    run(64, 1)  # loads libraries and starts threads
    run(ROWS, BATCH)
    return own_bytes("VmHWM") - before


def memory(strategy: str, keys: int, threads: int) -> dict[str, dict[str, float]]:
    """Return the MiB of a pass, each in a fresh process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    found: dict[str, dict[str, float]] = {}
    for what in ("forward", "forward+backward"):
        for who in ("ours", "torch sdpa"):
            command = [sys.executable, __file__, "--threads", str(threads), "--keys", str(keys)]
            command += ["--strategy", strategy, "--child", who, what]
            done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
            found.setdefault(what, {})[who] = round(float(done.stdout) / 2**20, 1)
    return found


def measure(o: argparse.Namespace) -> dict[str, Any]:
    """Return one row."""
    row = {"strategy": o.strategy, "keys": o.keys, "half": o.half, "threads": o.threads}
    if o.memory:
        return row | {"memory_mib": memory(o.strategy, o.keys, o.threads)}
    module = make(o.strategy)
    blocks: dict[str, Block] = {"ours": module, "torch eager": with_sdpa(module)}
    blocks["nn.MultiheadAttention"] = as_printed(module)
    if not o.no_compile:
        blocks["torch.compile"] = torch.compile(with_sdpa(module), dynamic=False)
    steps = {n: step(b, module, o.keys, o.half) for n, b in blocks.items()}
    median = {n: statistics.median(t) for n, t in timed(steps, o.rounds).items()}
    row |= {"median_ms": {n: round(t, 1) for n, t in median.items()}}
    return row | {"ratio": {n: round(t / median["ours"], 2) for n, t in median.items()}}


def main() -> int:
    """Measure, print and file one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", default="gated_attention")
    parser.add_argument("--keys", type=int, default=577)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--half", action="store_true", help="under autocast to bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--memory", action="store_true", help="bytes instead of time")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="JSON that the row is added to")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    if o.child:
        who, what = o.child
        sys.stdout.write(f"{extra_bytes(who, o.strategy, o.keys, what != 'forward')}\n")
        return 0
    row = measure(o)
    sys.stdout.write(json.dumps(row) + "\n")
    if o.out:
        rows = json.loads(o.out.read_text()) if o.out.exists() else []
        key = ("strategy", "keys", "half", "threads")
        same = [r for r in rows if all(r[k] == row[k] for k in key)]
        rows = [r for r in rows if r not in same] + [(same[0] if same else {}) | row]
        o.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
