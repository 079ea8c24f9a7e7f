"""What processes that train together share: averages, gathered rows; alone, all of it is free."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from cmibq.errors import ConfigError
from cmibq.ops import peers

__all__ = ["average_", "gather_rows", "join", "mean_weights", "rank", "unwrapped", "world"]


def world() -> int:
    """Return the number of processes; 1 without a process group."""
    return peers.world()[1]


def rank() -> int:
    """Return the number of this process, 0 alone."""
    return peers.world()[0]


def join(timeout: float = 1800.0) -> int:
    """Join the processes that torchrun or accelerate started; leave them when Python ends.

    Args:
        timeout: seconds to wait for the others.

    Returns:
        The number of this process.

    Raises:
        ConfigError: a variable of torchrun is missing.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1" or (distributed.is_available() and distributed.is_initialized()):
        return rank()
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ConfigError(f"WORLD_SIZE is {size} but {name} is not set; start with torchrun")
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
    peers.leave_at_exit()
    return rank()


def mean_weights(mask: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """Return weights [B] that make ``(weights * values).sum()`` the mean over the rows that count.

    With several processes, the average of these means is that over all rows of all of them, also
    where they have unlike numbers of rows.

    Args:
        mask: bool [B], rows that count; None = all.
        rows: B.
        device: of the weights.

    Example:
        >>> mean_weights(torch.tensor([True, False, True]), 3, torch.device("cpu"))
        tensor([0.5000, 0.0000, 0.5000])
    """
    kept = torch.ones(rows, device=device) if mask is None else mask.to(device).float()
    total = kept.sum()
    if world() > 1:
        distributed.all_reduce(total)
        total = total / world()
    return torch.where(total > 0, kept / total, torch.zeros_like(kept))


class _Gather(torch.autograd.Function):
    """Rows of all processes; every process computes the same loss of them.

    The gradients are averaged over the processes later, and each process only has the part of its
    own rows: times their number.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        start = sum(ctx.sizes[: rank()])
        own: Tensor = grads[0][start : start + ctx.sizes[rank()]]
        return own * len(ctx.sizes), None


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows [B, ...] of all processes in their order, with gradients.

    Right where every process computes the same loss of what is returned and gradients are averaged
    over processes. Numbers of rows may differ.
    """
    if world() == 1:
        return rows
    size = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.zeros_like(size) for _ in range(world())]
    distributed.all_gather(sizes, size)
    found: Tensor = _Gather.apply(rows, [int(s) for s in sizes])  # type: ignore[no-untyped-call]
    return found


def unwrapped(module: nn.Module) -> nn.Module:
    """Return what DistributedDataParallel or torch.compile wrapped."""
    inner = getattr(module, "_orig_mod", None)
    if isinstance(module, nn.parallel.DistributedDataParallel):
        inner = module.module
    return module if inner is None else unwrapped(inner)


def _averages_itself(module: nn.Module) -> bool:
    """Whether a wrapper around a model averages gradients: DDP and both kinds of FSDP."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    return bool(kinds & {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"})


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    yield from kinds.values()


@torch.no_grad()
def average_(parameters: Iterable[nn.Parameter], wrapped: nn.Module | None = None) -> None:
    """Replace gradients by their average over processes; nothing happens alone.

    Args:
        parameters: what an optimiser trains; without a gradient here counts as 0.
        wrapped: a model; the parameters of it that DDP or FSDP averages already are left out.
    """
    if world() == 1:
        return
    done = set[int]()
    if wrapped is not None and _averages_itself(wrapped):
        done = {id(p) for p in wrapped.parameters()}
    left = [p for p in parameters if p.requires_grad and id(p) not in done]
    for p in left:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    for bucket in _buckets(p.grad for p in left if p.grad is not None):
        flat = torch.cat([g.flatten() for g in bucket])
        distributed.all_reduce(flat)
        flat /= world()
        for g, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            g.copy_(part.view_as(g))
