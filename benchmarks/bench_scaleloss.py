"""Scale search kernel against torch.mm on the same shapes; one core unless THREADS says otherwise.

A candidate costs one product [T, K] x [K, N] (two with activations), plus quantising the weight.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from cmibq.runtime import kernels, native

THREADS = int(os.environ.get("THREADS", "1"))
SHAPES = [(512, 384, 128, 20), (64, 1024, 1024, 4), (1024, 1024, 1024, 4), (2048, 1024, 2816, 2)]
"""Tokens, outputs, inputs, candidates: the demo's MLP, few tokens, a 1 B model's layers."""


def measure(call: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """Return the median and the spread (largest - smallest) of the seconds of a call."""
    times = []
    call()
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times), max(times) - min(times)


def main() -> None:
    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    print("isa        tokens outputs inputs act     ms  spread  GFLOP/s  of torch.mm")
    for t, n, k, s in SHAPES:
        x, w = (rng.normal(size=(m, k)).astype(np.float32) for m in (t, n))
        grid = np.exp(0.3 * rng.normal(size=(s, k))).astype(np.float32)
        a, b = torch.from_numpy(x), torch.from_numpy(w)
        peak = 2e-9 * t * n * k / measure(lambda a=a, b=b: a @ b.T)[0]
        for isa in native().ISAS:
            if isa == "avx512vnni":
                continue  # the same kernels as avx512
            for act in (0, 8):
                core, loss = kernels(THREADS, isa), np.empty(s)
                work = np.empty(core.scaleloss_workspace(t, n, k, act))
                args = (x, w, np.ones(t), grid, 4, 64, 5 if act else 6, act, 0, loss, work)
                median, spread = measure(lambda c=core, a=args: c.scaleloss(*a))
                rate = 2e-9 * t * n * k * s * (2 if act else 1) / median
                print(
                    f"{isa:10} {t:6} {n:7} {k:6} {act:3} {1e3 * median:6.1f}  {1e3 * spread:6.1f}"
                    f"  {rate:7.1f}  {100 * rate / peak:8.0f} %"
                )


if __name__ == "__main__":
    main()
