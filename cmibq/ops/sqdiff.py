"""Mean squared error of rows as a torch operator: one pass forward, one backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmibq.ops.library import (
    LIBRARY,
    direct,
    empty_like,
    kernel_ready,
    no_second,
    once,
    view,
    wants_grad,
)
from cmibq.runtime import kernels

__all__ = ["mean_square_error", "reference", "reference_backward"]

LIBRARY.define("sqdiff(Tensor a, Tensor b) -> Tensor")
LIBRARY.define("sqdiff_backward(Tensor g, Tensor a, Tensor b) -> Tensor")


def reference(a: Tensor, b: Tensor) -> Tensor:
    """Return ``mean((a - b)^2)`` of every row of [R, C]."""
    return (a - b).square().mean(1)


def reference_backward(g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the gradient of a; that of b is its negative."""
    return (a - b) * (g * (2 / max(a.shape[1], 1)))[:, None]


def _forward_cpu(a: Tensor, b: Tensor) -> Tensor:
    if not kernel_ready(a, b) or not a.numel():
        return reference(a, b)
    k, total = kernels(), np.empty(len(a))
    work = np.empty(k.sqdiff_workspace(*a.shape))
    k.sqdiff_row(view(a.contiguous()), view(b.contiguous()), total, work)
    return torch.from_numpy((total / a.shape[1]).astype(np.float32))


def _backward_cpu(g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if not kernel_ready(g, a, b):
        return reference_backward(g, a, b)
    out = empty_like(a)
    factor = view(g).astype(np.float64) * (2 / max(a.shape[1], 1))
    kernels().sqdiff_bwd_row(view(a.contiguous()), view(b.contiguous()), factor, view(out))
    return out


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    made = torch.ops.cmibq.sqdiff_backward(g, *ctx.saved_tensors)
    return made if ctx.needs_input_grad[0] else None, -made if ctx.needs_input_grad[1] else None


LIBRARY.impl("sqdiff", _forward_cpu, "CPU")
LIBRARY.impl("sqdiff", reference, "CUDA")
LIBRARY.impl("sqdiff_backward", _backward_cpu, "CPU")
LIBRARY.impl("sqdiff_backward", reference_backward, "CUDA")
torch.library.register_fake("cmibq::sqdiff", lambda a, b: a.new_empty(a.shape[0]), lib=LIBRARY)
torch.library.register_fake(
    "cmibq::sqdiff_backward", lambda g, a, b: torch.empty_like(a), lib=LIBRARY
)
torch.library.register_autograd("cmibq::sqdiff", _autograd, setup_context=_setup, lib=LIBRARY)
no_second("sqdiff")


class _Eager(torch.autograd.Function):
    """What autograd records where the dispatcher is left out; the same two functions."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        """Return what the CPU function does."""
        ctx.save_for_backward(a, b)
        return _forward_cpu(a, b)

    @staticmethod
    @once
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that are wanted."""
        made = _backward_cpu(g, *ctx.saved_tensors)
        need = ctx.needs_input_grad
        return made if need[0] else None, -made if need[1] else None


def mean_square_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared difference of every row; differentiable, and keeps nothing else.

    Args:
        a: [B, ...]. float32 on the CPU runs in C, with sums in float64.
        b: of the same shape and dtype.

    Returns:
        [B].

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> mean_square_error(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2))
        tensor([2.5000, 0.0000])
    """
    if a.shape != b.shape:
        raise ValueError(f"mean_square_error: a is {list(a.shape)} and b {list(b.shape)}")
    a, b = a.flatten(1), b.flatten(1)
    made: Tensor
    if direct(a, b):
        if wants_grad(a, b):
            made = _Eager.apply(a, b)  # type: ignore[no-untyped-call]
        else:
            made = _forward_cpu(a, b)
    else:
        made = torch.ops.cmibq.sqdiff(a, b)
    return made
