"""Ranges and magnitudes of rows or columns, as torch operators (no gradient)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmibq.errors import check_axis
from cmibq.ops.library import LIBRARY, call, direct, kernel_ready, put, refuse_grad, view
from cmibq.runtime import kernels

__all__ = [
    "absmax",
    "abssum",
    "minmax",
    "reference_absmax",
    "reference_abssum",
    "reference_minmax",
]

LIBRARY.define("minmax(Tensor x, int axis) -> (Tensor, Tensor)")
LIBRARY.define("absmax(Tensor x, int axis) -> Tensor")
LIBRARY.define("abssum(Tensor x, Tensor? weight, int axis) -> Tensor")


def reference_minmax(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum of each row (axis 0) or column (axis 1); NaN wins, never -0."""
    return x.amin(1 - axis) + 0.0, x.amax(1 - axis) + 0.0


def reference_absmax(x: Tensor, axis: int) -> Tensor:
    """Return max |x| of each row or column; 0 where there is nothing."""
    if x.shape[1 - axis] == 0:
        return x.new_zeros(x.shape[-axis])
    return x.abs().amax(1 - axis)


def reference_abssum(x: Tensor, weight: Tensor | None, axis: int) -> Tensor:
    """Return sum |x| of each row or sum weight |x| of each column, float64."""
    size = x.abs().double()
    if weight is not None:
        size = torch.where(weight[:, None] == 0, 0.0, weight[:, None] * size)
    return size.sum(1 - axis)


def _minmax_cpu(
    x: Tensor, axis: int, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    if not kernel_ready(x):
        mn, mx = reference_minmax(x, axis)
        return (mn, mx) if out is None else (put(mn, out[0]), put(mx, out[1]))
    mn, mx = _minmax_fake(x, axis) if out is None else out
    k = kernels()
    (k.minmax_col if axis else k.minmax_row)(view(x), view(mn), view(mx))
    return mn, mx


def _absmax_cpu(x: Tensor, axis: int, out: Tensor | None = None) -> Tensor:
    if not kernel_ready(x):
        return put(reference_absmax(x, axis), out)
    out = _absmax_fake(x, axis) if out is None else out
    k = kernels()
    (k.absmax_col if axis else k.absmax_row)(view(x), view(out))
    return out


def _abssum_cpu(x: Tensor, weight: Tensor | None, axis: int, out: Tensor | None = None) -> Tensor:
    if not kernel_ready(x):
        return put(reference_abssum(x, weight, axis), out)
    out = _abssum_fake(x, weight, axis) if out is None else out
    if axis:
        kernels().abssum_col(view(x), None if weight is None else view(weight), view(out))
    else:
        kernels().abssum_row(view(x), view(out))
    return out


def _minmax_fake(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[-axis]), x.new_empty(x.shape[-axis])


def _absmax_fake(x: Tensor, axis: int) -> Tensor:
    return x.new_empty(x.shape[-axis])


def _abssum_fake(x: Tensor, weight: Tensor | None, axis: int) -> Tensor:
    return x.new_empty(x.shape[-axis], dtype=torch.float64)


LIBRARY.impl("minmax", _minmax_cpu, "CPU")
LIBRARY.impl("minmax", reference_minmax, "CUDA")
LIBRARY.impl("absmax", _absmax_cpu, "CPU")
LIBRARY.impl("absmax", reference_absmax, "CUDA")
LIBRARY.impl("abssum", _abssum_cpu, "CPU")
LIBRARY.impl("abssum", reference_abssum, "CUDA")
torch.library.register_fake("cmibq::minmax", _minmax_fake, lib=LIBRARY)
torch.library.register_fake("cmibq::absmax", _absmax_fake, lib=LIBRARY)
torch.library.register_fake("cmibq::abssum", _abssum_fake, lib=LIBRARY)


def minmax(
    x: Tensor, *, axis: int = 0, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest element of every row or column.

    Args:
        x: [R, C], contiguous. float32 on the CPU runs in C; other dtypes and devices use the
            reference.
        axis: 0 = per row, 1 = per column.
        out: two [R] or [C] in the dtype of `x`, to write to.

    Returns:
        (mn, mx): [R] or [C] in the dtype of `x`. One NaN makes both NaN; never -0.

    Raises:
        ValueError: rows or columns without an element.

    Example:
        >>> minmax(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), axis=1)
        (tensor([ 1., -2.]), tensor([3., 4.]))
    """
    check_axis(axis)
    if out is None:
        made: tuple[Tensor, Tensor] = call(_minmax_cpu, torch.ops.cmibq.minmax, (x,), axis)
        return made
    refuse_grad(*out)
    if not direct(x, *out):
        mn, mx = torch.ops.cmibq.minmax(x, axis)
        return put(mn, out[0]), put(mx, out[1])
    made = _minmax_cpu(x, axis, out)
    for t in made:
        torch.autograd.graph.increment_version(t)  # who saved its old values must find out
    return made


def absmax(x: Tensor, *, axis: int = 0, out: Tensor | None = None) -> Tensor:
    """Return the largest magnitude of every row or column; 0 where there is no element.

    Args:
        x: as in `minmax`.
        axis: 0 = per row, 1 = per column.
        out: [R] or [C] in the dtype of `x`, to write to.

    Returns:
        [R] or [C] in the dtype of `x`; NaN where a NaN is met.

    Example:
        >>> absmax(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        tensor([2., 4.])
    """
    check_axis(axis)
    made: Tensor = call(_absmax_cpu, torch.ops.cmibq.absmax, (x,), axis, out=out)
    return made


def abssum(
    x: Tensor, *, weight: Tensor | None = None, axis: int = 0, out: Tensor | None = None
) -> Tensor:
    """Return the sum of magnitudes of every row, or the weighted sum of every column.

    Args:
        x: as in `minmax`.
        weight: float64 [R], only with axis 1; a row of weight 0 is left out, even if it has NaN.
        axis: 0 = per row, 1 = per column.
        out: float64 [R] or [C] to write to.

    Returns:
        float64 [R] or [C].

    Raises:
        ValueError: a weight with axis 0, or of another size.

    Example:
        >>> x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
        >>> abssum(x, weight=torch.tensor([1.0, 0.5], dtype=torch.float64), axis=1)
        tensor([2.5000, 4.0000], dtype=torch.float64)
    """
    check_axis(axis)
    if weight is not None and axis == 0:
        raise ValueError("abssum: weight weighs rows, so it needs axis=1; axis is 0")
    made: Tensor = call(_abssum_cpu, torch.ops.cmibq.abssum, (x,), weight, axis, out=out)
    return made
