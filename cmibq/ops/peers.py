"""Numbers that all processes of a distributed training agree on; alone they stay what they are."""

from __future__ import annotations

import atexit

import torch
from torch import Tensor, distributed

__all__ = ["all_gather_rows", "all_max_", "all_sum_", "leave_at_exit", "world"]


def world() -> tuple[int, int]:
    """Return the rank of this process and how many there are: ``(0, 1)`` alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def all_max_(t: Tensor) -> Tensor:
    """Take the largest over all processes into `t`, element by element, and return it."""
    if world()[1] > 1:
        distributed.all_reduce(t, distributed.ReduceOp.MAX)
    return t


def all_sum_(t: Tensor) -> Tensor:
    """Take the sum over all processes into `t` and return it."""
    if world()[1] > 1:
        distributed.all_reduce(t)
    return t


def all_gather_rows(t: Tensor) -> Tensor:
    """Return the rows of `t` of all processes, by rank; `t` has the same shape everywhere."""
    size = world()[1]
    if size == 1:
        return t
    parts = [torch.empty_like(t) for _ in range(size)]
    distributed.all_gather(parts, t.contiguous())
    return torch.cat(parts)


def leave_at_exit() -> None:
    """Leave the process group when Python ends, and not later.

    The threads of gloo would otherwise outlive the interpreter, and abort the process now and then.
    """
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
