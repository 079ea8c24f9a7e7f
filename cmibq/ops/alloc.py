"""Bits of channels with a hard budget as torch operators; the projection is differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmibq.ops.library import LIBRARY, kernel_ready, recorded, view
from cmibq.runtime import kernels

__all__ = [
    "project_bits",
    "reference_project",
    "reference_project_backward",
    "reference_round",
    "round_bits",
]

LIBRARY.define("project_bits(Tensor x, Tensor? weight, float target, float lo, float hi) -> Tensor")
LIBRARY.define(
    "project_bits_backward(Tensor g, Tensor b, Tensor? weight, float lo, float hi) -> Tensor"
)
LIBRARY.define("round_bits(Tensor b, int lo, int hi, int total) -> Tensor")


def reference_project(
    x: Tensor, weight: Tensor | None, target: float, lo: float, hi: float
) -> Tensor:
    """Return ``clamp(x + tau, lo, hi)`` with ``sum w b = target sum w`` per row, by sorting.

    The sum grows in ``tau`` with slope ``w`` between ``lo - x`` and ``hi - x`` of each channel, so
    it is linear between sorted corners; ``tau`` lies on the piece that crosses the budget.
    """
    if x.numel() == 0:
        return x.clone()
    v, whole = x.double(), x.isfinite().all(1, keepdim=True)
    far = (v.abs() >= 2.0**24).any()
    if not v.is_cpu:  # asking would wait for the device
        v = torch.where(far, _near(v, hi - lo), v)
    elif bool(far):
        v = _near(v, hi - lo)
    w = torch.ones_like(v) if weight is None else weight.double().expand_as(v)
    corners, order = torch.cat([lo - v, hi - v], 1).sort(1)
    slope = torch.cat([w, -w], 1).gather(1, order).cumsum(1)
    rise = slope[:, :-1] * corners.diff(dim=1)
    sums = torch.nn.functional.pad(rise.cumsum(1), (1, 0)) + lo * w.sum(1, keepdim=True)
    want = target * w.sum(1, keepdim=True)
    piece = ((sums < want).sum(1, keepdim=True) - 1).clamp(min=0)
    left, at, steep = (t.gather(1, piece) for t in (corners, sums, slope))
    tau = left + torch.where(steep > 0, (want - at) / steep, 0.0)
    return torch.where(whole, (v + tau).clamp(lo, hi), torch.nan).to(x.dtype) + 0.0


def _near(v: Tensor, reach: float) -> Tensor:
    """Return wishes of the same projection near 0: gaps wider than the range shrink to it."""
    ordered, place = v.sort(1)
    gaps = ordered.diff(dim=1).nan_to_num(reach).clamp(max=reach)
    return torch.zeros_like(v).scatter(1, place, torch.nn.functional.pad(gaps.cumsum(1), (1, 0)))


def reference_project_backward(
    g: Tensor, b: Tensor, weight: Tensor | None, lo: float, hi: float
) -> Tensor:
    """Return ``free * (g - w sum_free g / sum_free w)``: the Jacobian of the projection at b."""
    free = (b > lo) & (b < hi)
    w = torch.ones_like(b) if weight is None else weight.expand_as(b)
    total = torch.where(free, w, 0.0).double().sum(1, keepdim=True)
    mean = torch.where(free, g, 0.0).double().sum(1, keepdim=True) / total.clamp(min=1e-300)
    return torch.where(free, g.double() - w.double() * mean, 0.0).to(g.dtype)


def reference_round(b: Tensor, lo: int, hi: int, total: int) -> Tensor:
    """Return whole parts, and one more for the largest fractions: sum `total`, uint8 [R, C].

    Where that is not enough, because `b` is far from the budget, every channel that can gets one
    more (or less) first, and so on.
    """
    if not bool(b.isfinite().all()):
        raise ValueError("round_bits: b holds NaN or infinity; every element must be finite")
    b = b.clamp(lo, hi)
    share, out = b - b.floor(), b.floor().long()  # sums in integers: bfloat16 has none of 257
    for _ in range(hi - lo + 1):
        left = total - out.sum(1, keepdim=True)
        if not bool(left.any()):
            break
        can_grow, can_shrink = out < hi, out > lo
        more = torch.where(can_grow, -share, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
        fewer = torch.where(can_shrink, share, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
        out = out + ((more < left) & can_grow).long() - ((fewer < -left) & can_shrink).long()
    return out.to(torch.uint8)


def _project_cpu(x: Tensor, weight: Tensor | None, target: float, lo: float, hi: float) -> Tensor:
    if not kernel_ready(x):
        return reference_project(x, weight, target, lo, hi)
    out = torch.empty_like(x)
    w = None if weight is None else view(weight)
    kernels().project_row(view(x), w, lo, hi, target, view(out))
    return out


def _backward_cpu(g: Tensor, b: Tensor, weight: Tensor | None, lo: float, hi: float) -> Tensor:
    if not kernel_ready(g, b):
        return reference_project_backward(g, b, weight, lo, hi)
    out = torch.empty_like(b)
    w = None if weight is None else view(weight)
    kernels().project_bwd_row(view(g.contiguous()), view(b), w, lo, hi, view(out))
    return out


def _round_cpu(b: Tensor, lo: int, hi: int, total: int) -> Tensor:
    if not kernel_ready(b):
        return reference_round(b, lo, hi, total)
    out = torch.empty_like(b, dtype=torch.uint8)
    kernels().round_bits_row(view(b), lo, hi, total, view(out))
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, _, ctx.lo, ctx.hi = inputs
    ctx.save_for_backward(output, weight)


def _gradients(backward: Any, ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    b, weight = ctx.saved_tensors
    return backward(g, b, weight, ctx.lo, ctx.hi), None, None, None, None


LIBRARY.impl("project_bits", _project_cpu, "CPU")
LIBRARY.impl("project_bits", reference_project, "CUDA")
LIBRARY.impl("project_bits_backward", _backward_cpu, "CPU")
LIBRARY.impl("project_bits_backward", reference_project_backward, "CUDA")
LIBRARY.impl("round_bits", _round_cpu, "CPU")
LIBRARY.impl("round_bits", reference_round, "CUDA")
torch.library.register_fake(
    "cmibq::project_bits", lambda x, weight, target, lo, hi: torch.empty_like(x), lib=LIBRARY
)
torch.library.register_fake(
    "cmibq::project_bits_backward", lambda g, b, weight, lo, hi: torch.empty_like(b), lib=LIBRARY
)
torch.library.register_fake(
    "cmibq::round_bits",
    lambda b, lo, hi, total: torch.empty_like(b, dtype=torch.uint8),
    lib=LIBRARY,
)
_project = recorded("project_bits", _project_cpu, _backward_cpu, _setup, _gradients)


def project_bits(
    x: Tensor, target: float, lo: float, hi: float, *, weight: Tensor | None = None
) -> Tensor:
    """Return the bits in ``[lo, hi]`` with mean `target` nearest to `x`; differentiable in `x`.

    They are ``clamp(x + tau, lo, hi)`` with one shift ``tau`` per row. The gradient is exact: that
    of the result, less its (weighted) mean over the channels that are not at an end.

    Args:
        x: [R, C], contiguous. float32 on the CPU runs in C, anything else in `reference_project`.
        target: weighted mean of every row of the result, in ``[lo, hi]``.
        lo: fewest bits.
        hi: most bits.
        weight: [C], > 0: what a bit of each channel costs; None = 1. Not differentiated.

    Returns:
        [R, C] of the dtype of `x`. A row with NaN or infinity becomes NaN, its gradient 0.

    Raises:
        ValueError: `target` outside ``[lo, hi]``, a weight that is not finite and > 0.

    References:
        Cover and Thomas, "Elements of Information Theory", section 13.3.3.

    Example:
        >>> project_bits(torch.tensor([[0.0, 1.0, 9.0]]), 4.0, 2.0, 8.0)
        tensor([[2., 2., 8.]])
    """
    if not lo <= target <= hi:
        raise ValueError(f"project_bits: target is {target}; the mean must lie in {lo}..{hi}")
    tensors = (x,) if weight is None else (x, weight)
    out: Tensor = _project(tensors, x, weight, target, lo, hi)
    return out


def round_bits(b: Tensor, lo: int, hi: int, total: int) -> Tensor:
    """Round bits to integers whose sum is exactly `total`, row by row (no gradient).

    Args:
        b: [R, C], contiguous, such as `project_bits` returns for the mean ``total / C``.
        lo: fewest bits, 0..255.
        hi: most bits, lo..255.
        total: sum of every row, ``lo * C .. hi * C``.

    Returns:
        uint8 [R, C]: whole parts, and one more for the largest fractions, of equal ones the lowest
        index first.

    Raises:
        ValueError: a total that cannot be met, NaN or infinity in `b`.

    Example:
        >>> round_bits(torch.tensor([[2.5, 3.5, 6.0]]), 2, 8, 12)
        tensor([[3, 3, 6]], dtype=torch.uint8)
    """
    if not lo * b.shape[1] <= total <= hi * b.shape[1]:
        raise ValueError(
            f"round_bits: total is {total}; it must lie in {lo * b.shape[1]}..{hi * b.shape[1]}"
        )
    out: Tensor = torch.ops.cmibq.round_bits(b, lo, hi, total)
    return out
