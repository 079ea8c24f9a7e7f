"""What a call costs beside its work: fake quantisation of 4 x 8 values, one thread."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.case import Call, Case, Factory
from benchmarks.probes import Probes
from cmibq import ops
from cmibq.runtime import kernels

__all__ = ["CASES"]

ROWS, COLS = 4, 8


def tiny() -> tuple[np.ndarray, ...]:
    """Return x, scale, lo, hi."""
    x = np.linspace(-9, 9, ROWS * COLS, dtype=np.float32).reshape(ROWS, COLS)
    one = np.ones(ROWS, np.float32)
    return x, one, -8 * one, 7 * one


def raw(threads: int) -> Call:
    """The method of the C extension: parse five arrays, release the GIL, compute."""
    x, *grid = tiny()
    return partial(kernels(threads).fakequant_row, x, *grid, np.empty_like(x))


def op(threads: int) -> Call:
    import torch

    args = tuple(torch.from_numpy(a) for a in tiny())
    return partial(ops.fakequant, *args, out=torch.empty_like(args[0]))


def op_new(threads: int) -> Call:
    import torch

    return partial(ops.fakequant, *(torch.from_numpy(a) for a in tiny()))


def op_grad(threads: int) -> Call:
    """Recorded by autograd for the gradients of x and of the step sizes."""
    import torch

    x, scale, lo, hi = (torch.from_numpy(a) for a in tiny())
    return partial(ops.fakequant, x.requires_grad_(), scale.requires_grad_(), lo, hi)


def add_out(threads: int) -> Call:
    import torch

    x = torch.from_numpy(tiny()[0])
    return partial(torch.add, x, x, out=torch.empty_like(x))


def limit(p: Probes) -> float:
    """The values once to and fro: nothing beside a call."""
    return p.copy(8 * ROWS * COLS)


def case(name: str, ours: Factory, note: str = "") -> Case:
    return Case(
        axis="call_overhead",
        name=name,
        ours=ours,
        peers={"torch.add(out=)": add_out},
        limit=limit,
        note=f"fakequant of {ROWS}x{COLS} values{note}; the peer computes less; limit: the bytes",
        threads=(1,),
        quick=True,
    )


CASES = [
    case("raw binding", raw),
    case("torch op", op, note=", out="),
    case("torch op, new tensor", op_new),
    case("torch op with grad", op_grad, note=", recorded by autograd"),
]
