"""Rounding of columns to widths that may be fractional, with the bits that the codes take."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MOST_BITS", "TABLE", "channel_bits", "offset", "reference"]

MOST_BITS = 8
TABLE = 2 ** (MOST_BITS + 1) - 1
"""Entries of a channel's table of rates: ``2**b`` for every width b = 0..8, one after the other."""


def offset(bits: Tensor) -> Tensor:
    """Return where the entries of each width start in a table: ``2**bits - 1``."""
    return (2 ** bits.long()) - 1


def _round(x: Tensor, low: Tensor, high: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return values on the grids of integer `bits`, and the codes; straight-through."""
    top = (2.0**bits - 1).to(x.dtype)
    step = (high - low) / top.clamp(min=1)
    u = ((x - low) / step).clamp(min=0).minimum(top)
    q = u + (u.round() - u).detach()
    return torch.where(bits > 0, low + q * step, (low + high) / 2), q


def _rate(q: Tensor, bits: Tensor, tables: Tensor) -> Tensor:
    """Return the bits of codes by their tables; the slope in `q` is that between neighbours."""
    rows, channels = q.shape
    at, top = q.detach().long(), 2 ** bits.long() - 1
    flat, column = tables.flatten(), torch.arange(channels, device=q.device) * TABLE
    start = column + offset(bits).expand(rows, channels)
    value, held = flat[start + at], flat.detach()
    slope = (held[start + (at + 1).minimum(top)] - held[start + (at - 1).clamp(min=0)]) / 2
    return value + slope * (q - q.detach())


def reference(
    x: Tensor, low: Tensor, high: Tensor, bits: Tensor, tables: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return ``(1 - f) Q_b(x) + f Q_{b+1}(x)``, b and f the whole and fractional bits, and rates.

    ``Q_b(x) = low + round((clamp(x) - low) / step) step`` with ``step = (high - low) / (2^b - 1)``,
    and the centre for 0 bits. Gradients: straight through where x lies inside, ``Q_{b+1} - Q_b`` to
    the bits, that of the step size (LSQ) to the ends; a rate has the slope between the neighbours
    of a code.
    """
    groups = bits.shape[0]
    bits = bits.repeat_interleave(x.shape[0] // groups, 0) if groups > 1 else bits
    whole = bits.detach().floor().clamp(0, MOST_BITS - 1)
    share = bits - whole
    below, q0 = _round(x, low, high, whole)
    above, q1 = _round(x, low, high, whole + 1)
    y = below + share * (above - below)
    if tables is None:
        return y, x.new_zeros(x.shape[0])
    r0, r1 = _rate(q0, whole, tables), _rate(q1, whole + 1, tables)
    return y, (r0 + share * (r1 - r0)).sum(1)


def channel_bits(
    x: Tensor, low: Tensor, high: Tensor, bits: Tensor, tables: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Round every column to its own width between its own ends; differentiable in all arguments.

    Args:
        x: [R, C].
        low: [C], lowest level of each column.
        high: [C], highest, above `low`.
        bits: [G, C] in 0..8, fractions allowed; G divides R, and R / G rows share a row of it.
        tables: [C, 511] bits that every code of every width takes (`TABLE`); None: no rates.

    Returns:
        The values [R, C], and the bits of every row [R] (0 without tables).

    Example:
        >>> x, low, high = torch.tensor([[0.3, 0.8]]), torch.zeros(2), torch.ones(2)
        >>> channel_bits(x, low, high, torch.tensor([[1.0, 1.5]]))[0]
        tensor([[0.0000, 0.8333]])
    """
    return reference(x, low, high, bits, tables)
