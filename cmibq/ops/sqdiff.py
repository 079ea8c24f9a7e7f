"""Mean squared error of rows as a torch operator: one pass forward, one backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmibq.ops.library import (
    LIBRARY,
    empty_like,
    kernel_ready,
    recorded,
    view,
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


def _gradients(backward: Any, ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    made = backward(g, *ctx.saved_tensors)
    return made if ctx.needs_input_grad[0] else None, -made if ctx.needs_input_grad[1] else None


LIBRARY.impl("sqdiff", _forward_cpu, "CPU")
LIBRARY.impl("sqdiff", reference, "CUDA")
LIBRARY.impl("sqdiff_backward", _backward_cpu, "CPU")
LIBRARY.impl("sqdiff_backward", reference_backward, "CUDA")
torch.library.register_fake("cmibq::sqdiff", lambda a, b: a.new_empty(a.shape[0]), lib=LIBRARY)
torch.library.register_fake(
    "cmibq::sqdiff_backward", lambda g, a, b: torch.empty_like(a), lib=LIBRARY
)
_run = recorded("sqdiff", _forward_cpu, _backward_cpu, _setup, _gradients)


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
    made: Tensor = _run((a, b), a, b)
    return made
