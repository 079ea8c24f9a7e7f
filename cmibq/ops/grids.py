"""Fake quantisation on other grids as torch operators: powers of two, torch's own arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmibq.errors import check_axis, refuse_step_size
from cmibq.ops.library import LIBRARY, call, empty_like, kernel_ready, put, view
from cmibq.runtime import kernels

__all__ = [
    "fakequant_log2",
    "fakequant_torch_compat",
    "power_of_two",
    "reference_compat",
    "reference_log2",
]

_ARGS = "(Tensor x, Tensor scale, Tensor lo, Tensor hi, int axis) -> Tensor"
LIBRARY.define("fakequant_log2" + _ARGS)
LIBRARY.define("fakequant_compat" + _ARGS)


def _exponent(v: Tensor) -> Tensor:
    """Return rint(log2(v)) as the dtype of `v`, exactly; very small where v is 0."""
    fraction, power = torch.frexp(v)  # fraction in [0.5, 1)
    up = fraction.double().square() > 0.5
    exponent = torch.where(up, power, power - 1).to(v.dtype)
    return torch.where(torch.isinf(v), 1e4, torch.where(v == 0, -1e4, exponent))


def reference_log2(x: Tensor, scale: Tensor, lo: Tensor, hi: Tensor, axis: int) -> Tensor:
    """Return ``sign(x) * scale * 2**e``, ``e = clamp(rint(log2(|x|/scale)), lo, hi)``; 0 for 0."""
    s, low, high = (p.unsqueeze(1 - axis) for p in (scale, lo, hi))
    e = torch.clamp(_exponent((x / s).abs()), low, high)
    power = torch.exp2(e) * s
    return torch.where(x == 0, 0.0, torch.where(torch.isnan(x), x, torch.copysign(power, x)))


def reference_compat(x: Tensor, scale: Tensor, lo: Tensor, hi: Tensor, axis: int) -> Tensor:
    """Return ``rint(clamp(x * (1 / scale), lo, hi)) * scale + 0``."""
    s, low, high = (p.unsqueeze(1 - axis) for p in (scale, lo, hi))
    return torch.round(torch.clamp(x * (1.0 / s), low, high)) * s + 0.0


def _log2_cpu(
    x: Tensor, scale: Tensor, lo: Tensor, hi: Tensor, axis: int, out: Tensor | None = None
) -> Tensor:
    if not kernel_ready(x, scale, lo, hi):
        return put(reference_log2(x, scale, lo, hi, axis), out)
    out = empty_like(x) if out is None else out
    k = kernels()
    kernel = k.fakequant_log2_col if axis else k.fakequant_log2_row
    kernel(view(x), view(scale), view(lo), view(hi), view(out))
    return out


def _compat_cpu(
    x: Tensor, scale: Tensor, lo: Tensor, hi: Tensor, axis: int, out: Tensor | None = None
) -> Tensor:
    if not kernel_ready(x, scale, lo, hi):
        return put(reference_compat(x, scale, lo, hi, axis), out)
    out = empty_like(x) if out is None else out
    k = kernels()
    kernel = k.fakequant_compat_col if axis else k.fakequant_compat_row
    kernel(view(x), view(scale), view(lo), view(hi), view(out))
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.axis = inputs
    ctx.save_for_backward(*tensors, output)


def _gradients(g: Tensor, v: Tensor, inside: Tensor, q: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return (gx, gscale) of out = s * q(v), q straight-through where `inside`, else constant."""
    slope = q - torch.where(inside, v, 0.0)
    return torch.where(inside, g, 0.0), (g * slope).sum(1 - axis)


def _log2_autograd(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, _, hi, out = ctx.saved_tensors
    s = scale.unsqueeze(1 - ctx.axis)
    v = x / s
    inside = _exponent(v.abs()) <= hi.unsqueeze(1 - ctx.axis)
    inside = inside & ~torch.isnan(v)
    return (*_gradients(g, v, inside, out / s, ctx.axis), None, None, None)


def _compat_autograd(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, lo, hi, _ = ctx.saved_tensors
    s, low, high = (p.unsqueeze(1 - ctx.axis) for p in (scale, lo, hi))
    v = x * (1.0 / s)
    q = torch.round(torch.clamp(v, low, high))
    return (*_gradients(g, v, (v >= low) & (v <= high), q, ctx.axis), None, None, None)


for _name, _function, _reference, _backward in (
    ("fakequant_log2", _log2_cpu, reference_log2, _log2_autograd),
    ("fakequant_compat", _compat_cpu, reference_compat, _compat_autograd),
):
    LIBRARY.impl(_name, _function, "CPU")
    LIBRARY.impl(_name, _reference, "CUDA")
    torch.library.register_fake(
        f"cmibq::{_name}", lambda x, scale, lo, hi, axis: torch.empty_like(x), lib=LIBRARY
    )
    torch.library.register_autograd(f"cmibq::{_name}", _backward, setup_context=_setup, lib=LIBRARY)


def power_of_two(scale: Tensor, *, up: bool = False) -> Tensor:
    """Return step sizes rounded to powers of two, so that dividing by them is a shift.

    Args:
        scale: > 0; any shape.
        up: to the next power that is not smaller; otherwise to the nearest in the logarithm.

    Returns:
        Tensor of the shape and dtype of `scale`, without gradient; the exponent is exact.

    Raises:
        ValueError: a scale that is not finite and > 0, or whose power would be 2**128.

    Example:
        >>> power_of_two(torch.tensor([0.7, 0.71, 3.0, 4.0]))
        tensor([0.5000, 1.0000, 4.0000, 4.0000])
        >>> power_of_two(torch.tensor([0.3, 0.5]), up=True)
        tensor([0.5000, 0.5000])
    """
    scale = scale.detach()
    good = (scale > 0) & (scale <= 2.0**127)
    if not torch.compiler.is_compiling() and not bool(good.all()):
        at = int(good.flatten().to(torch.uint8).argmin())
        refuse_step_size(at, float(scale.flatten()[at]))
    if not up:
        return torch.exp2(_exponent(scale))
    fraction, power = torch.frexp(scale)
    return torch.exp2(torch.where(fraction == 0.5, power - 1, power).to(scale.dtype))


def fakequant_log2(
    x: Tensor,
    scale: Tensor,
    lo: Tensor,
    hi: Tensor,
    *,
    axis: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Round `x` to ``sign(x) * scale * 2**e``, e the integer in lo..hi nearest to log2(|x|/scale).

    Differentiable in `x` (straight-through, 0 above the range) and in `scale` (as LSQ).

    Args:
        x: [R, C], contiguous. float32 on the CPU runs in C, anything else in `reference_log2`.
        scale: [R] (axis 0) or [C] (axis 1), > 0.
        lo: smallest exponent, same shape; ``1 - 2**bits`` for codes of `bits` bits.
        hi: largest exponent, usually 0.
        axis: 0 = parameters per row, 1 = per column.
        out: [R, C] to write to, may be `x` itself; only where no gradient is recorded.

    Returns:
        [R, C] of the dtype of `x`. Zero stays zero, NaN stays NaN, infinity saturates.

    Raises:
        ConfigError: `out` where a gradient is recorded.
        ValueError: a shape does not fit, a scale is not finite and > 0, an exponent is no integer
            in -126..127.

    References:
        Lin et al., "FQ-ViT", IJCAI 2022, eq. 10.

    Example:
        >>> one = torch.ones(1)
        >>> fakequant_log2(torch.tensor([[0.9, -0.3, 0.01]]), one, -3 * one, 0 * one)
        tensor([[ 1.0000, -0.2500,  0.1250]])
    """
    check_axis(axis)
    op, args = torch.ops.cmibq.fakequant_log2, (x, scale, lo, hi)
    made: Tensor = call(_log2_cpu, op, args, axis, out=out, grad=True)
    return made


def fakequant_torch_compat(
    x: Tensor,
    scale: Tensor,
    lo: Tensor,
    hi: Tensor,
    *,
    axis: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Round as `fakequant`, but multiply by ``1 / scale`` as ``torch.fake_quantize_*`` does.

    Args:
        x: as in `fakequant`.
        scale: as in `fakequant`.
        lo: as in `fakequant`.
        hi: as in `fakequant`.
        axis: as in `fakequant`.
        out: as in `fakequant`.

    Returns:
        [R, C] of the dtype of `x`; for finite float32 the bits of torch.

    Raises:
        ConfigError: `out` where a gradient is recorded.
        ValueError: as `fakequant`.

    Example:
        >>> one = torch.ones(1)
        >>> fakequant_torch_compat(torch.tensor([[0.15]]), 0.1 * one, -8 * one, 7 * one)
        tensor([[0.2000]])
    """
    check_axis(axis)
    op, args = torch.ops.cmibq.fakequant_compat, (x, scale, lo, hi)
    made: Tensor = call(_compat_cpu, op, args, axis, out=out, grad=True)
    return made
