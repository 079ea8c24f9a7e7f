"""Bits under a hard budget: the differentiable projection, and exact integers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from benchmarks.case import Call, Case
from cmibq.runtime import kernels

__all__ = ["CASES"]

BITS = np.arange(2, 9)
LO, HI, MEAN = 2.0, 8.0, 4.0
SHAPES = {"[64,1024]": (64, 1024), "[8,4096]": (8, 4096)}


def train(project: Callable, shape: tuple[int, int]) -> Call:
    """One forward and backward pass of a projection."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x = (4 + 2 * torch.randn(shape, generator=generator)).requires_grad_()
    g = torch.randn(shape, generator=generator)

    def call() -> None:
        x.grad = None
        project(x).backward(g)

    return call


def ours(shape: tuple[int, int], threads: int) -> Call:
    from cmibq.ops import project_bits

    return train(lambda x: project_bits(x, MEAN, LO, HI), shape)


def by_sorting(shape: tuple[int, int], threads: int) -> Call:
    """Sort the corners of the piecewise linear sum: exact, a few torch calls."""
    from cmibq.ops.alloc import reference_project

    return train(lambda x: reference_project(x, None, MEAN, LO, HI), shape)


def by_bisection(shape: tuple[int, int], threads: int) -> Call:
    """Halve the bracket of the shift 24 times, then one step with a gradient."""
    import torch

    def project(x: Any) -> Any:
        with torch.no_grad():
            left = LO - x.amax(1, keepdim=True)
            right = HI - x.amin(1, keepdim=True)
            for _ in range(24):
                middle = 0.5 * (left + right)
                low = (x + middle).clamp_(LO, HI).mean(1, keepdim=True) < MEAN
                left = torch.where(low, middle, left)
                right = torch.where(low, right, middle)
            shifted = x + left
            free = ((shifted > LO) & (shifted < HI)).float()
        mean = (x * free).sum(1, keepdim=True) / free.sum(1, keepdim=True)
        return (x - mean + (mean.detach() + left)).clamp(LO, HI)

    return train(project, shape)


@lru_cache(maxsize=1)
def table(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distortions [n, 7] of widths 2..8, and what each further bit saves [n * 6]."""
    variance = np.exp(2 * np.random.default_rng(0).standard_normal(n))
    d = (variance[:, None] * 4.0**-BITS).astype(np.float32)
    return d, (d[:, :-1] - d[:, 1:]).ravel()


def exact(n: int, threads: int) -> Call:
    d, _ = table(n)
    k = kernels()
    out, info, spent = np.empty(n, np.uint8), np.empty(3), np.empty(1, np.int64)
    work = np.empty(k.allocate_workspace(n, 7), np.uint8)
    return partial(k.allocate, d, BITS, None, None, 4 * n - 3, out, info, spent, work)


def partition(n: int, threads: int) -> Call:
    """np.argpartition of the savings (given, not timed), ties by lowest index, bits per unit."""
    _, gain = table(n)
    want = 2 * n - 3

    def call() -> np.ndarray:
        cut = gain[np.argpartition(gain, gain.size - want)[gain.size - want]]
        taken = gain > cut
        ties = np.flatnonzero(gain == cut)
        taken[ties[: want - np.count_nonzero(taken)]] = True
        return 2 + taken.reshape(n, 6).sum(1, dtype=np.uint8)

    return call


def topk(n: int, threads: int) -> Call:
    """torch.topk of the savings; ties as they fall."""
    import torch

    gain = torch.from_numpy(table(n)[1])

    def call() -> Any:
        taken = torch.topk(gain, 2 * n - 3, sorted=False).indices
        return torch.bincount(taken // 6, minlength=n)

    return call


def projection(name: str, shape: tuple[int, int]) -> Case:
    return Case(
        axis="allocate",
        name=f"projection {name}",
        ours=partial(ours, shape),
        peers={
            "torch by sorting": partial(by_sorting, shape),
            "torch by bisection": partial(by_bisection, shape),
        },
        limit=lambda p: p.read64(4 * 6 * shape[0] * shape[1]),
        note="forward + backward with autograd; limit: six passes over the rows at memory speed",
        quick=True,
    )


def integers(name: str, n: int) -> Case:
    return Case(
        axis="allocate",
        name=f"integers {name}x7",
        ours=partial(exact, n),
        peers={"np.argpartition + ties": partial(partition, n), "torch.topk": partial(topk, n)},
        limit=lambda p: p.read64(4 * 7 * n) if n < 10**6 else p.read(4 * 7 * n),
        note="from the distortions; the peers start from the savings; limit: one read of the table",
        flops=2 * 7 * n,
        moved=4 * 7 * n,
        quick=n < 10**6,
    )


CASES = [
    *(projection(name, shape) for name, shape in SHAPES.items()),
    integers("1e5", 10**5),
    integers("1e7", 10**7),
]
