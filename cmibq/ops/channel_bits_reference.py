"""Rounding of columns to fractional widths in plain torch: the oracle, and what other devices run.

Formulas and gradients are those of ``csrc/kernels/channel_bits/scalar.c``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cmibq.ops.noise import reference as noise

__all__ = ["MOST_BITS", "TABLE", "offset", "reference", "reference_backward"]

MOST_BITS = 8
TABLE = 2 ** (MOST_BITS + 1) - 1
"""Entries of a channel's table of rates: ``2**b`` for every width b = 0..8, one after the other."""
_LEAST = 1e-30


def offset(bits: Tensor) -> Tensor:
    """Return where the entries of each width start in a table: ``2**bits - 1``."""
    return (2 ** bits.long()) - 1


class _Width(NamedTuple):
    """One of the two widths of every element: [R, C] where it depends on rows, else [1, C]."""

    weight: Tensor
    top: Tensor
    step: Tensor
    none: Tensor
    v: Tensor
    q: Tensor
    level: Tensor
    code: Tensor
    """Place of the code in the flattened tables."""


def _rows(bits: Tensor, rows: int) -> Tensor:
    """Return bits [1, C], or of every row."""
    return bits if bits.shape[0] == 1 else bits.repeat_interleave(rows // bits.shape[0], 0)


def _widths(
    x: Tensor, low: Tensor, high: Tensor, bits: Tensor, key: Tensor | None, samples: int
) -> tuple[_Width, _Width]:
    bits = _rows(bits.detach(), x.shape[0])
    whole = bits.floor().clamp(max=MOST_BITS - 1)
    column = torch.arange(x.shape[1], device=x.device) * TABLE
    r = None if key is None else noise(key, (samples, x.numel() // samples), False).view(x.shape)

    def one(width: Tensor, weight: Tensor) -> _Width:
        top = 2.0**width - 1
        step = ((high - low) / top.clamp(min=1)).clamp(min=_LEAST)
        v = (x - low) / step
        u = v.clamp(min=0).minimum(top)
        q = u.round() if r is None else (u + r).floor().minimum(top)
        level = torch.where(width > 0, low + q * step, (low + high) * 0.5)
        code = column + offset(width) + q.nan_to_num(0.0).long()
        return _Width(weight, top, step, width == 0, v, q, level, code)

    share = bits - whole
    return one(whole, 1 - share), one(whole + 1, share)


def reference(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    bits: Tensor,
    tables: Tensor | None,
    key: Tensor | None = None,
    samples: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return ``(1 - f) Q_b(x) + f Q_{b+1}(x)``, b and f the whole and fractional bits, and rates.

    ``Q_b(x) = low + round((clamp(x) - low) / step) step`` with ``step = (high - low) / (2^b - 1)``,
    and the centre for 0 bits.
    """
    a, b = _widths(x, low, high, bits, key, samples)
    y = a.weight * a.level + b.weight * b.level
    if tables is None:
        return y, x.new_zeros(x.shape[0])
    flat = tables.flatten()
    return y, (a.weight * flat[a.code] + b.weight * flat[b.code]).sum(1)


def _slope(w: _Width, flat: Tensor) -> Tensor:
    """Return half the difference of the neighbours of a code, no further than the ends."""
    first = w.code - w.q.nan_to_num(0.0).long()
    more = (w.code + 1).minimum(first + w.top.long())
    return (flat[more] - flat[(w.code - 1).maximum(first)]) * 0.5


def _parts(w: _Width, gy: Tensor, grate: Tensor, flat: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the gradient of x by way of one width, and that of its step over ``2^b - 1``."""
    g = gy * w.weight
    inverse = torch.where(w.step > _LEAST, 1 / w.step, 0.0)
    h = g if flat is None else g + grate * w.weight * _slope(w, flat) * inverse
    inside = (w.v >= 0) & (w.v <= w.top) & ~w.none
    h = torch.where(inside, h, 0.0)
    step = g * torch.where(w.none, 0.5, w.q) - torch.where(inside, h * w.v, 0.0)
    return h, step / w.top.clamp(min=1)


def reference_backward(
    gy: Tensor,
    grate: Tensor,
    x: Tensor,
    low: Tensor,
    high: Tensor,
    bits: Tensor,
    tables: Tensor | None,
    key: Tensor | None = None,
    samples: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, low, high, bits and tables (empty without tables)."""
    a, b = _widths(x, low, high, bits, key, samples)
    rows = grate[:, None]
    flat = None if tables is None else tables.flatten()
    (h0, step0), (h1, step1) = (_parts(w, gy, rows, flat) for w in (a, b))
    gx, high_parts = h0 + h1, step0 + step1
    gbits = gy * (b.level - a.level)
    gtables = x.new_empty(0)
    if tables is not None and flat is not None:
        gbits = gbits + rows * (flat[b.code] - flat[a.code])
        gtables = torch.zeros_like(flat)
        for w in (a, b):
            weights = (rows * w.weight).expand(x.shape)
            gtables.index_add_(0, w.code.flatten(), weights.flatten())
        gtables = gtables.view(tables.shape)
    gbits = gbits.view(bits.shape[0], -1, x.shape[1]).sum(1)
    return gx, (gy - gx - high_parts).sum(0), high_parts.sum(0), gbits, gtables
