"""Rounding of columns to widths that may be fractional, with the bits that the codes take."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cmibq.errors import ConfigError
from cmibq.ops.channel_bits_reference import (
    MOST_BITS,
    TABLE,
    offset,
    reference,
    reference_backward,
)
from cmibq.ops.library import (
    LIBRARY,
    empty_like,
    kernel_ready,
    recorded,
    view,
)
from cmibq.runtime import kernels

__all__ = ["MOST_BITS", "TABLE", "channel_bits", "offset", "reference", "reference_backward"]

_HALVES = (torch.bfloat16, torch.float16)
_OPERANDS = "Tensor x, Tensor low, Tensor high, Tensor bits, Tensor? tables, Tensor? key, SymInt n"
LIBRARY.define(f"channel_bits({_OPERANDS}) -> (Tensor, Tensor)")
LIBRARY.define(
    f"channel_bits_backward(Tensor gy, Tensor grate, {_OPERANDS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


class _Operands(NamedTuple):
    x: Tensor
    low: Tensor
    high: Tensor
    bits: Tensor
    tables: Tensor | None
    key: Tensor | None
    samples: int

    def ready(self, *more: Tensor) -> bool:
        """Tell whether the C kernels take them."""
        given = self.x, self.low, self.high, self.bits, *more
        return kernel_ready(*given) and (self.tables is None or kernel_ready(self.tables))

    def views(self) -> Any:
        """Return them as the C functions want them."""
        arrays = [view(t.contiguous()) for t in self[:4]]
        tables = None if self.tables is None else view(self.tables.contiguous())
        if self.key is None:
            return (*arrays, tables, 0, 0, 0, 0, 0)
        return (*arrays, tables, self.samples, *self.key.tolist())


def _forward_cpu(*operands: Any) -> tuple[Tensor, Tensor]:
    o = _Operands(*operands)
    if not o.ready():
        return reference(*o)
    y, rate = empty_like(o.x), torch.empty(o.x.shape[0])
    args: Any = (*o.views(), view(y), view(rate))
    kernels().channel_bits(*args)
    return y, rate


def _backward_cpu(gy: Tensor, grate: Tensor, *operands: Any) -> tuple[Tensor, ...]:
    o = _Operands(*operands)
    if not o.ready(gy, grate):
        return reference_backward(gy, grate, *o)
    gx, gbits = empty_like(o.x), torch.empty_like(o.bits, memory_format=torch.contiguous_format)
    k, low, high = kernels(), np.empty(o.low.shape), np.empty(o.high.shape)
    gtables = gx.new_empty(0) if o.tables is None else torch.empty(o.tables.shape)
    tables, size = (None, 0) if o.tables is None else (view(gtables), k.channel_workspace(len(low)))
    outer = view(gy.contiguous()), view(grate.contiguous())
    args: Any = (*o.views(), *outer, view(gx), view(gbits), low, high, tables, np.empty(size))
    k.channel_bits_bwd(*args)
    sums = [torch.from_numpy(s.astype(np.float32)) for s in (low, high)]
    return gx, sums[0], sums[1], gbits, gtables


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0])


def _fake_backward(gy: Tensor, grate: Tensor, *operands: Any) -> tuple[Tensor, ...]:
    o = _Operands(*operands)
    tables = o.x.new_empty(0) if o.tables is None else torch.empty_like(o.tables)
    return (*(torch.empty_like(t) for t in o[:4]), tables)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.samples = inputs
    ctx.save_for_backward(*tensors)


def _gradients(backward: Any, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    made = backward(*grads, *saved, ctx.samples)
    return (*made[:4], None if saved[4] is None else made[4], None, None)


LIBRARY.impl("channel_bits", _forward_cpu, "CPU")
LIBRARY.impl("channel_bits", reference, "CUDA")
LIBRARY.impl("channel_bits_backward", _backward_cpu, "CPU")
LIBRARY.impl("channel_bits_backward", reference_backward, "CUDA")
torch.library.register_fake("cmibq::channel_bits", _fake, lib=LIBRARY)
torch.library.register_fake("cmibq::channel_bits_backward", _fake_backward, lib=LIBRARY)
_run = recorded("channel_bits", _forward_cpu, _backward_cpu, _setup, _gradients)


def _check(o: _Operands) -> None:
    """Refuse shapes that do not fit.

    Raises:
        ConfigError: naming the argument.
    """
    rows, cols = o.x.shape
    if o.bits.ndim != 2 or o.bits.shape[1] != cols or rows % max(o.bits.shape[0], 1):
        raise ConfigError(
            f"bits has shape {list(o.bits.shape)} for x {[rows, cols]}; give [G, {cols}], where G"
            f" divides {rows}"
        )
    for name, t, want in (
        ("low", o.low, [cols]),
        ("high", o.high, [cols]),
        ("tables", o.tables, [cols, TABLE]),
    ):
        if t is not None and list(t.shape) != want:
            raise ConfigError(f"{name} has shape {list(t.shape)}; give {want}")
    if o.key is not None and (o.samples < 1 or rows % o.samples):
        raise ConfigError(f"samples is {o.samples}; give a divisor of the {rows} rows of x")


def channel_bits(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    bits: Tensor,
    tables: Tensor | None = None,
    *,
    key: Tensor | None = None,
    samples: int = 0,
) -> tuple[Tensor, Tensor]:
    """Round every column to its own width between its own ends; differentiable in all arguments.

    Fractional bits lie between the two neighbouring widths: ``(1 - f) Q_b(x) + f Q_{b+1}(x)``. The
    gradients are written down in ``csrc/kernels/channel_bits/scalar.c``.

    Args:
        x: [R, C]. float32 on the CPU runs in C; halves are converted to it.
        low: [C], lowest level of each column.
        high: [C], highest, from `low` on; a column whose ends are equal has one value.
        bits: [G, C] in 0..8, fractions allowed; G divides R, and ``R / G`` rows share one of it.
        tables: [C, 511] bits that every code of every width takes (`TABLE`); None: no rates.
        key: `cmibq.ops.noise_key`; codes are then rounded at random, right in the mean.
        samples: with a key: samples whose rows x has, one after the other.

    Returns:
        The values [R, C], and the bits of every row [R] (0 without tables). NaN stays NaN, and is
        code 0 in the rate.

    Raises:
        ConfigError: a shape does not fit.
        ValueError: ends that are not finite or not in order, widths outside 0..8 (on the CPU).

    References:
        Esser et al., "Learned Step Size Quantization", ICLR 2020, eq. 3.

    Example:
        >>> x, low, high = torch.tensor([[0.3, 0.8]]), torch.zeros(2), torch.ones(2)
        >>> channel_bits(x, low, high, torch.tensor([[1.0, 1.5]]))[0]
        tensor([[0.0000, 0.8333]])
    """
    x, low, high, bits = (t.float() if t.dtype in _HALVES else t for t in (x, low, high, bits))
    o = _Operands(x, low, high, bits, tables, key, samples)
    _check(o)
    found: tuple[Tensor, Tensor] = _run(tuple(t for t in o[:6] if t is not None), *o)
    return found
