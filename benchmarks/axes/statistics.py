"""Calibration statistics of float32 [4096, 4096]: ranges, histograms, percentiles, clips."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.case import Call, Case
from benchmarks.operands import matrix
from benchmarks.probes import Probes
from cmibq import arrays

__all__ = ["CASES"]

N = 4096
BINS = 2048
GRID = 20


def tensor() -> Any:
    import torch

    return torch.from_numpy(matrix(N, N))


def minmax(axis: int, threads: int) -> Call:
    out = np.empty(N, np.float32), np.empty(N, np.float32)
    return partial(arrays.minmax, matrix(N, N), axis=axis, out=out)


def aminmax(axis: int, threads: int) -> Call:
    import torch

    return partial(torch.aminmax, tensor(), dim=1 - axis)


def histogram(threads: int) -> Call:
    x = matrix(N, N)

    def call() -> arrays.Histogram:
        h = arrays.Histogram(BINS)
        h.update(x)
        return h

    return call


def histc(threads: int) -> Call:
    import torch

    return partial(torch.histc, tensor(), bins=BINS)


def numpy_histogram(threads: int) -> Call:
    return partial(np.histogram, matrix(N, N), bins=BINS)


def percentile(shape: tuple[int, int], threads: int) -> Call:
    return partial(arrays.percentile, matrix(N, N).reshape(shape), 99.9)


def numpy_partition(shape: tuple[int, int], threads: int) -> Call:
    """Only the selection of the two ranks, without joining them."""
    x = matrix(N, N).reshape(shape)
    k = int(0.999 * (shape[1] - 1))
    return partial(np.partition, x, (k, k + 1), axis=1)


def numpy_percentile(shape: tuple[int, int], threads: int) -> Call:
    return partial(np.percentile, matrix(N, N).reshape(shape), 99.9, axis=1)


def mse(threads: int) -> Call:
    return partial(arrays.qparams_mse, matrix(N, N), 4, n_grid=GRID)


def formula(x: Any, n_grid: int) -> tuple[Any, Any]:
    """Asymmetric 4-bit grids of shrunken ranges that contain 0; the best scale of each row."""
    import torch

    mn, mx = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    best = torch.full_like(mn, torch.inf)
    kept = torch.zeros_like(mn)
    for i in range(n_grid):
        keep = 1 - i * 0.5 / n_grid
        scale = ((mx - mn) * keep / 15).clamp(min=1e-8)
        zero = torch.round(-mn * keep / scale)
        q = torch.clamp(torch.round(x / scale), -zero, 15 - zero) * scale
        error = (q - x).square().sum(1, keepdim=True)
        kept = torch.where(error < best, scale, kept)
        best = torch.minimum(error, best)
    return kept, best


def mse_compiled(threads: int) -> Call:
    import torch

    torch._dynamo.reset()
    compiled = torch.compile(formula, dynamic=False)
    call = partial(compiled, tensor(), GRID)
    call()
    return call


def one_read(p: Probes) -> float:
    return p.read64(4 * N * N)


def minmax_case(name: str, axis: int) -> Case:
    return Case(
        axis="minmax_channel",
        name=f"per {name}",
        ours=partial(minmax, axis),
        peers={f"torch.aminmax(dim={1 - axis})": partial(aminmax, axis)},
        limit=one_read,
        note="NumPy's x.min(1), x.max(1) take about 2.5 times ours; limit: one read of 64 MiB",
        also={"DRAM read of a 256 MiB ring": lambda p: p.read(4 * N * N)},
        flops=2 * N * N,
        moved=4 * N * N,
        quick=axis == 0,
    )


def percentile_case(name: str, shape: tuple[int, int]) -> Case:
    return Case(
        axis="percentile",
        name=f"99.9 per {name}",
        ours=partial(percentile, shape),
        peers={
            "np.partition": partial(numpy_partition, shape),
            "np.percentile": partial(numpy_percentile, shape),
        },
        limit=one_read,
        note="exact; np.partition only selects; limit: one read",
        flops=2 * N * N,
        moved=4 * N * N,
    )


CASES = [
    minmax_case("row", 0),
    minmax_case("column", 1),
    Case(
        axis="histogram",
        name="2048 bins",
        ours=histogram,
        peers={"torch.histc": histc, "np.histogram": numpy_histogram},
        limit=one_read,
        note="range found in the same call; ours can be continued; limit: one read",
        flops=3 * N * N,
        moved=4 * N * N,
        quick=True,
    ),
    percentile_case("tensor", (1, N * N)),
    percentile_case("row", (N, N)),
    Case(
        axis="mse_clip",
        name="20 ranges per row, 4 bits",
        ours=mse,
        peers={"torch.compile": mse_compiled},
        limit=lambda p: p.fma(2 * 6 * GRID * N * N),
        note="limit: six instructions per element and range at the rate of FMAs",
        flops=2 * 6 * GRID * N * N,
        moved=4 * N * N,
    ),
]
