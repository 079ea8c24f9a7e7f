"""Grids from ranges: scale and zero point per row, as torch operators (no gradient)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmibq.ops.library import LIBRARY, call, kernel_ready, view
from cmibq.runtime import kernels

__all__ = ["grid_of_range", "qparams", "qparams_mse", "reference", "reference_mse"]

SYMMETRIC, ZERO_IN_RANGE, HALF_SCALE = 1, 2, 4  # csrc/core/grid.h

LIBRARY.define("qparams(Tensor x, int bits, int mode) -> (Tensor, Tensor)")
LIBRARY.define(
    "qparams_mse(Tensor x, int bits, int mode, int n_grid, float max_shrink)"
    " -> (Tensor, Tensor, Tensor)"
)


def grid_of_range(mn: Tensor, mx: Tensor, bits: int, mode: int) -> tuple[Tensor, Tensor]:
    """Return (scale, zero) of ranges [mn, mx], any shape; zero holds integers in a float dtype.

    The formula of ``csrc/core/grid.h``: ``scale = max(mx - mn, 1e-5) / (2**bits - 1)``,
    ``zero = clamp(-rint(mn / scale), 0, 2**bits - 1)``, or symmetric
    ``scale = max(|mn|, |mx|, 1e-5) / (2**(bits-1) - 1)``, ``zero = 2**(bits-1)``.
    """
    top = 2 ** (bits - 1 if mode & SYMMETRIC else bits) - 1
    if mode & ZERO_IN_RANGE:
        mn, mx = mn.clamp(max=0.0), mx.clamp(min=0.0)
    span = torch.maximum(-mn, mx) if mode & SYMMETRIC else mx - mn
    scale = span.clamp(min=1e-5) / top
    if mode & HALF_SCALE:
        half = scale.to(torch.float16)
        scale = torch.where(half == 0, 2.0**-24, half.to(scale.dtype))
    if mode & SYMMETRIC:
        return scale, torch.full_like(scale, top + 1)
    return scale, (-torch.round(mn / scale)).clamp(0.0, top) + 0.0


def reference(x: Tensor, bits: int, mode: int) -> tuple[Tensor, Tensor]:
    """Return (scale [R], zero uint8 [R]) of the rows of x [R, C] from their minimum and maximum."""
    scale, zero = grid_of_range(x.amin(1), x.amax(1), bits, mode)
    return scale, zero.to(torch.uint8)


def reference_mse(
    x: Tensor, bits: int, mode: int, n_grid: int, max_shrink: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (scale, zero, err float64), the best of `n_grid` shrunken ranges; first wins ties."""
    mn, mx, top = x.amin(1).double(), x.amax(1).double(), 2**bits - 1
    found = []
    for i in range(n_grid):
        keep = 1.0 - i * max_shrink / n_grid
        scale, zero = grid_of_range((mn * keep).to(x.dtype), (mx * keep).to(x.dtype), bits, mode)
        s, z = scale[:, None], zero[:, None]
        error = (torch.clamp(x / s, -z, top - z).round() * s - x).double().square().sum(1)
        found.append((scale, zero, error))
    scales, zeros, errors = (torch.stack(parts) for parts in zip(*found, strict=True))
    best = errors.argmin(0, keepdim=True)
    scale, zero, error = (t.gather(0, best)[0] for t in (scales, zeros, errors))
    return scale, zero.to(torch.uint8), error


def _cpu(x: Tensor, bits: int, mode: int) -> tuple[Tensor, Tensor]:
    if not kernel_ready(x):
        return reference(x, bits, mode)
    scale, zero = _fake(x, bits, mode)
    kernels().qparams_row(view(x), bits, mode, view(scale), view(zero))
    return scale, zero


def _mse_cpu(
    x: Tensor, bits: int, mode: int, n_grid: int, max_shrink: float
) -> tuple[Tensor, Tensor, Tensor]:
    if not kernel_ready(x):
        return reference_mse(x, bits, mode, n_grid, max_shrink)
    scale, zero, err = _mse_fake(x, bits, mode, n_grid, max_shrink)
    results = (view(scale), view(zero), view(err))
    kernels().qparams_mse_row(view(x), bits, mode, n_grid, max_shrink, *results)
    return scale, zero, err


def _fake(x: Tensor, bits: int, mode: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0]), x.new_empty(x.shape[0], dtype=torch.uint8)


def _mse_fake(
    x: Tensor, bits: int, mode: int, n_grid: int, max_shrink: float
) -> tuple[Tensor, Tensor, Tensor]:
    return *_fake(x, bits, mode), x.new_empty(x.shape[0], dtype=torch.float64)


LIBRARY.impl("qparams", _cpu, "CPU")
LIBRARY.impl("qparams", reference, "CUDA")
LIBRARY.impl("qparams_mse", _mse_cpu, "CPU")
LIBRARY.impl("qparams_mse", reference_mse, "CUDA")
torch.library.register_fake("cmibq::qparams", _fake, lib=LIBRARY)
torch.library.register_fake("cmibq::qparams_mse", _mse_fake, lib=LIBRARY)


def qparams(x: Tensor, bits: int, mode: int) -> tuple[Tensor, Tensor]:
    """Return the grid of every row from its minimum and maximum.

    Args:
        x: [R, C], contiguous. float32 on the CPU runs in C; other dtypes and devices use
            `reference`.
        bits: 1..8; a symmetric grid needs 2.
        mode: bits of `cmibq.quant.spec.RangeMode`: 1 symmetric, 2 zero in range, 4 half scale.

    Returns:
        (scale, zero): scale [R] in the dtype of `x`, zero uint8 [R]; value = (code - zero) * scale
        for codes 0 .. 2**bits - 1.

    Raises:
        ValueError: bits or mode out of range, a row with NaN or with a scale that overflows.

    Example:
        >>> qparams(torch.tensor([[-1.0, 0.5, 2.0]]), 2, 0)
        (tensor([1.]), tensor([1], dtype=torch.uint8))
    """
    scale, zero = call(_cpu, torch.ops.cmibq.qparams, (x,), bits, mode)
    return scale, zero


def qparams_mse(
    x: Tensor, bits: int, mode: int, *, n_grid: int = 20, max_shrink: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the grid of every row with the least squared error over shrunken ranges.

    Args:
        x: as in `qparams`.
        bits: as in `qparams`.
        mode: as in `qparams`.
        n_grid: ranges tried per row, at least 1.
        max_shrink: range i is shrunk by ``1 - i * max_shrink / n_grid``; 0..1.

    Returns:
        (scale, zero, err): as `qparams`, and the squared error of each row, float64 [R]. The first
        range wins ties.

    Raises:
        ValueError: as `qparams`.

    Example:
        >>> x = torch.tensor([[0.0, 1.0, 2.0, 3.0] * 8 + [6.0]])
        >>> [t.item() for t in qparams_mse(x, 2, 2, n_grid=2, max_shrink=1.0)]
        [1.0, 0, 9.0]
    """
    op = torch.ops.cmibq.qparams_mse
    scale, zero, err = call(_mse_cpu, op, (x,), bits, mode, n_grid, max_shrink)
    return scale, zero, err
