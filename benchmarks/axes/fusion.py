"""The fusion block: linear layer on the keys' source, multi-head attention, residual, layer norm.

Batch 4, 577 queries, 257 or 577 keys, width 1024, 16 heads: time of a training step
(`fusion_train`) and extra memory of a pass in a fresh process (`fusion_memory`, bytes).
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

from benchmarks.case import Call, Case, Factory, Reading
from benchmarks.peers import fusion
from benchmarks.peers.fusion import BATCH, ROWS, WIDTH
from benchmarks.probes import Probes

__all__ = ["CASES"]

KEYS = (257, 577)
PARAMETERS = 5 * WIDTH * WIDTH + 7 * WIDTH


def flops(keys: int) -> float:
    """Return the operations of forward and backward (twice the forward), scores counted once."""
    products = 2 * WIDTH * WIDTH * (2 * ROWS + 3 * keys) + 4 * ROWS * keys * WIDTH
    return 3.0 * BATCH * products


def moved(keys: int) -> float:
    """Return the bytes of the operands, read twice, and of their gradients and the output."""
    rows = BATCH * WIDTH * (ROWS + keys)
    return 4.0 * (3 * (rows + PARAMETERS) + 2 * BATCH * ROWS * WIDTH)


def ours(keys: int, precision: str, threads: int) -> Call:
    block, half = partial(fusion.ours, precision=precision), precision == "bfloat16"
    return fusion.step(block, *fusion.operands(keys), autocast=half)


def eager(keys: int, autocast: bool, threads: int) -> Call:
    return fusion.step(fusion.torch_block, *fusion.operands(keys), autocast=autocast)


def compiled(keys: int, autocast: bool, threads: int) -> Call:
    import torch

    torch._dynamo.reset()
    block = torch.compile(fusion.torch_block, dynamic=False)
    call = fusion.step(block, *fusion.operands(keys), autocast=autocast)
    call()
    return call


def medium(keys: int, threads: int) -> Call:
    """Torch's own way to multiply float32 in bfloat16."""
    import torch

    step = fusion.step(fusion.torch_block, *fusion.operands(keys))

    def call() -> object:
        torch.set_float32_matmul_precision("medium")
        try:
            return step()
        finally:
            torch.set_float32_matmul_precision("highest")

    return call


def limit(keys: int, p: Probes) -> float:
    return p.fma(flops(keys))


def half_limit(keys: int, p: Probes) -> float:
    return p.bf16(flops(keys))


def train(keys: int, half: bool) -> Case:
    peers: dict[str, Factory] = {
        "torch eager sdpa": partial(eager, keys, half),
        "torch.compile sdpa": partial(compiled, keys, half),
    }
    note = "forward + backward; all operands get gradients"
    if half:
        peers["torch eager sdpa, matmul precision medium"] = partial(medium, keys)
        note += "; both under autocast to bfloat16; limit: bf16 peak"
    else:
        note += "; limit: FMA peak"
    return Case(
        axis="fusion_train",
        name=f"{'bf16' if half else 'fp32'} Lk={keys}",
        ours=partial(ours, keys, "bfloat16" if half else "float32"),
        peers=peers,
        limit=partial(half_limit if half else limit, keys),
        note=note,
        flops=flops(keys),
        moved=moved(keys),
        quick=keys == min(KEYS),
    )


def memory(who: str, what: str, keys: int, threads: int) -> Reading:
    command = [sys.executable, "-m", "benchmarks.peers.fusion", who, what, str(keys), str(threads)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}

    def read() -> float:
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
        return float(done.stdout)

    return Reading(read, 1)


def results_only(what: str, keys: int, p: Probes) -> float:
    """The bytes of the output, and of the gradients."""
    out = 4.0 * BATCH * ROWS * WIDTH
    gradients = 4.0 * (BATCH * WIDTH * (ROWS + keys) + PARAMETERS)
    return out if what == "forward" else out + gradients


def extra(what: str) -> Case:
    keys = max(KEYS)
    return Case(
        axis="fusion_memory",
        name=f"{what} Lk={keys}",
        ours=partial(memory, "ours", what, keys),
        peers={"torch sdpa": partial(memory, "torch", what, keys)},
        limit=partial(results_only, what, keys),
        note="bytes: peak of a pass in a fresh process less what was there before; fp32, malloc as "
        "installed; recompute=True, which fusion_train does not use; limit: the results alone",
        quick=what == "forward",
    )


CASES = [
    *(train(keys, half) for half in (False, True) for keys in KEYS),
    extra("forward"),
    extra("forward+backward"),
]
