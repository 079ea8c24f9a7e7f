"""Linear layers that are trained: `gemm` forward and backward, without copies of views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cmibq.ops.gemm import gemm
from cmibq.ops.library import direct, kernel_ready, once, wants_grad
from cmibq.runtime import isa_level

__all__ = ["linear", "training_precision"]

_FEW = 12  # rows


def training_precision(*, half: bool = False) -> tuple[str, str]:
    """Return how `linear` multiplies in training: its results, and its gradients.

    Args:
        half: bfloat16 was asked for (autocast).

    On CPUs with AMX results take operands split into three bfloat16, with errors no larger than
    float32's, and gradients operands split into two: relative errors near 4e-6, 200 times below
    those of TF32. Elsewhere both are float32. Evaluation stays with float32, whose bits are those
    of every CPU: streams depend on it.

    Example:
        >>> training_precision(half=True)
        ('bfloat16', 'bfloat16')
    """
    if half:
        return "bfloat16", "bfloat16"
    if isa_level() == "avx512amx":
        return "bfloat16x3", "bfloat16x2"
    return "float32", "float32"


class _Eager(torch.autograd.Function):
    """The product and its gradients; keeps its operands."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, precision: str, gradient: str
    ) -> Tensor:
        """Return ``x @ weight.T + bias``."""
        ctx.save_for_backward(x, weight)
        ctx.precision = gradient
        return gemm(x, weight, trans_b=True, bias=bias, precision=precision)

    @staticmethod
    @once
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        g, need = g.contiguous(), ctx.needs_input_grad
        gx = gemm(g, weight, precision=ctx.precision) if need[0] else None
        gw = gemm(g, x, trans_a=True, precision=ctx.precision) if need[1] else None
        gb = gemm(g.new_ones(1, len(g)), g)[0] if need[2] else None  # reads g once: torch 5 times
        return gx, gw, gb, None, None


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    precision: str = "float32",
    grad_precision: str | None = None,
) -> Tensor:
    """Return ``x @ weight.T + bias``; differentiable, in C for float32 on the CPU.

    Args:
        x: [..., K].
        weight: [N, K].
        bias: [N] or None.
        precision: of the product, see `cmibq.ops.gemm`.
        grad_precision: of the products of the backward pass; None: the same. Up to 12 rows are
            always multiplied in float32, which is faster there.

    Returns:
        [..., N]. Other dtypes, devices, and tensors that something traces take torch's own.

    Raises:
        ValueError: a shape does not fit, or there is no such precision.

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(1, 3), torch.ones(1))
        tensor([[4.],
                [4.]])
    """
    tensors = [t for t in (x, weight, bias) if t is not None]
    if not (direct(*tensors) and kernel_ready(*tensors)):
        return functional.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        return functional.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= _FEW:  # float32 reads the weight once, where it lies
        precision = grad_precision = "float32"
    if wants_grad(*tensors):
        back = precision if grad_precision is None else grad_precision
        made: Tensor = _Eager.apply(rows, weight, bias, precision, back)  # type: ignore[no-untyped-call]
    else:
        made = gemm(rows, weight, trans_b=True, bias=bias, precision=precision)
    return made.view(*x.shape[:-1], len(weight))
