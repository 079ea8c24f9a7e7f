"""Fake quantisation as a torch operator, with a straight-through and step-size gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmibq.errors import check_axis
from cmibq.ops.library import (
    LIBRARY,
    call,
    direct,
    empty_like,
    kernel_ready,
    no_second,
    once,
    put,
    view,
    wants_grad,
)
from cmibq.runtime import kernels

__all__ = ["fakequant", "reference", "reference_backward"]

LIBRARY.define("fakequant(Tensor x, Tensor scale, Tensor lo, Tensor hi, int axis) -> Tensor")
LIBRARY.define(
    "fakequant_backward(Tensor g, Tensor x, Tensor scale, Tensor lo, Tensor hi, int axis)"
    " -> (Tensor, Tensor)"
)


def reference(x: Tensor, scale: Tensor, lo: Tensor, hi: Tensor, axis: int) -> Tensor:
    """Return ``rint(clamp(x / scale, lo, hi)) * scale + 0`` in the dtype of `x`.

    Args:
        x: [R, C] on any device.
        scale: [R] (axis 0) or [C] (axis 1), as `lo` and `hi`.
        lo: smallest integer level.
        hi: largest integer level.
        axis: 0 = parameters per row, 1 = per column.
    """
    s, low, high = (p.unsqueeze(1 - axis) for p in (scale, lo, hi))
    return torch.round(torch.clamp(x / s, low, high)) * s + 0.0


def reference_backward(
    g: Tensor, x: Tensor, scale: Tensor, lo: Tensor, hi: Tensor, axis: int
) -> tuple[Tensor, Tensor]:
    """Return (gx, gscale): clipped straight-through estimator and LSQ eq. 3."""
    s, low, high = (p.unsqueeze(1 - axis) for p in (scale, lo, hi))
    v = x / s
    inside = (v >= low) & (v <= high)
    slope = torch.round(torch.clamp(v, low, high)) - torch.where(inside, v, 0.0)
    zero = torch.zeros((), dtype=g.dtype, device=g.device)
    return torch.where(inside, g, zero), (g * slope).sum(1 - axis)


def _forward_cpu(
    x: Tensor, scale: Tensor, lo: Tensor, hi: Tensor, axis: int, out: Tensor | None = None
) -> Tensor:
    if not kernel_ready(x, scale, lo, hi):
        return put(reference(x, scale, lo, hi, axis), out)
    out = empty_like(x) if out is None else out
    k = kernels()
    kernel = k.fakequant_col if axis else k.fakequant_row
    kernel(view(x), view(scale), view(lo), view(hi), view(out))
    return out


def _backward_cpu(
    g: Tensor, x: Tensor, scale: Tensor, lo: Tensor, hi: Tensor, axis: int
) -> tuple[Tensor, Tensor]:
    if not kernel_ready(g, x, scale, lo, hi):
        return reference_backward(g, x, scale, lo, hi, axis)
    k = kernels()
    g = g.contiguous()  # autograd may hand over an expanded gradient
    gx = empty_like(x)
    gscale = np.empty(scale.shape)
    fixed = (view(x), view(g), view(scale), view(lo), view(hi), view(gx), gscale)
    if axis:
        rows = k.fakequant_bwd_blocks(x.shape[0], x.shape[1])
        k.fakequant_bwd_col(*fixed, np.empty((rows, x.shape[1])))
    else:
        k.fakequant_bwd_row(*fixed, np.empty(k.fakequant_bwd_row_workspace(*x.shape)))
    return gx, torch.from_numpy(gscale.astype(np.float32))  # kernel_ready: scale is float32


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.axis = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    gx, gscale = torch.ops.cmibq.fakequant_backward(g, *ctx.saved_tensors, ctx.axis)
    return gx, gscale, None, None, None


LIBRARY.impl("fakequant", _forward_cpu, "CPU")
LIBRARY.impl("fakequant", reference, "CUDA")
LIBRARY.impl("fakequant_backward", _backward_cpu, "CPU")
LIBRARY.impl("fakequant_backward", reference_backward, "CUDA")
torch.library.register_fake(
    "cmibq::fakequant", lambda x, scale, lo, hi, axis: torch.empty_like(x), lib=LIBRARY
)
torch.library.register_fake(
    "cmibq::fakequant_backward",
    lambda g, x, scale, lo, hi, axis: (torch.empty_like(x), torch.empty_like(scale)),
    lib=LIBRARY,
)
torch.library.register_autograd("cmibq::fakequant", _autograd, setup_context=_setup, lib=LIBRARY)
no_second("fakequant")


class _Eager(torch.autograd.Function):
    """What autograd records where the dispatcher is left out; the same two functions."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Return the output of the CPU function."""
        ctx.save_for_backward(*args[:4])
        ctx.axis = args[4]
        return _forward_cpu(*args)

    @staticmethod
    @once
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x` and `scale`."""
        x, scale, lo, hi = ctx.saved_tensors
        return (*_backward_cpu(g, x, scale, lo, hi, ctx.axis), None, None, None)


def fakequant(
    x: Tensor,
    scale: Tensor,
    lo: Tensor,
    hi: Tensor,
    *,
    axis: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Round `x` to the grid ``scale * {lo, ..., hi}``; differentiable in `x` and `scale`.

    Args:
        x: [R, C], contiguous. float32 on the CPU runs in C, anything else in `reference`.
        scale: [R] (axis 0) or [C] (axis 1), > 0.
        lo: smallest integer level, ``qmin - zero_point``; same shape as `scale`.
        hi: largest integer level, ``qmax - zero_point``; may vary, so bits may vary per channel.
        axis: 0 = parameters per row, 1 = per column.
        out: [R, C] to write to, may be `x` itself; only where no gradient is recorded.

    Returns:
        [R, C] of the dtype of `x`: `out` or a new tensor.

    Raises:
        ConfigError: `out` where a gradient is recorded.
        ValueError: a shape does not fit, a scale is not finite and > 0, a bound is no integer.

    References:
        Esser et al., "Learned Step Size Quantization", ICLR 2020, eq. 3.

    Example:
        >>> one = torch.ones(1)
        >>> fakequant(torch.tensor([[0.26, 9.0]]), one / 2, -2 * one, one)
        tensor([[0.5000, 0.5000]])
    """
    check_axis(axis)
    tensors = (x, scale, lo, hi)
    made: Tensor
    if out is None and wants_grad(x, scale) and direct(*tensors):
        made = _Eager.apply(*tensors, axis)  # type: ignore[no-untyped-call]
    else:
        made = call(_forward_cpu, torch.ops.cmibq.fakequant, tensors, axis, out=out, grad=True)
    return made
