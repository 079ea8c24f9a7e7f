"""Timing shared by the benchmarks: median and spread per ISA level, bandwidth, torch beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

from cmibq.runtime import native

SHAPES = [(4096, 64), (64, 4096), (1024, 4096)]
"""Groups of 64 in cache, rows in cache, a whole weight."""


def seconds(call: Callable[[], object], repeats: int = 15) -> tuple[float, float]:
    """Return the median time of a call and half the distance of the quartiles."""
    call()
    start = time.perf_counter()
    call()
    inner = max(1, int(2e-3 / (time.perf_counter() - start + 1e-9)))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(inner):
            call()
        times.append((time.perf_counter() - start) / inner)
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, (high - low) / 2


def report(
    method: str,
    args: Sequence[object],
    *,
    shape: tuple[int, int],
    moved: int,
    peer: Callable[[], object] | None = None,
) -> None:
    """Print a line per ISA level: microseconds per million elements, spread, GB/s.

    Args:
        method: a method of `Kernels`, run on one thread.
        args: its arguments.
        shape: of the matrix, for the title and the number of elements.
        moved: bytes read and written.
        peer: the same work in torch.
    """
    print(f"{method} {list(shape)}")
    calls = {
        isa: partial(getattr(native().Kernels(isa, 1), method), *args) for isa in native().ISAS
    }
    for name, call in {**calls, **({"torch": peer} if peer else {})}.items():
        middle, spread = seconds(call)
        unit = 1e12 / (shape[0] * shape[1])
        print(
            f"  {name:12s} {middle * unit:9.0f} us/M +- {spread * unit:6.0f}"
            f"  {moved / middle / 1e9:6.1f} GB/s"
        )
