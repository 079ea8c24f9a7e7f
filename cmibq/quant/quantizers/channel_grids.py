"""Where the levels of a channel lie between its ends, and rounding to them, straight through.

Each grid has ``2^b`` levels for b bits, in rising order of their codes, symmetric about the centre
of the ends; for 0 bits the centre is the only one.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from cmibq.ops.channel_bits import MOST_BITS, TABLE, offset
from cmibq.registry import Registry

__all__ = ["CHANNEL_GRIDS", "ChannelGrid", "between_grids"]

_MU = 255.0
_DEEPEST = 126


class ChannelGrid(Protocol):
    """Rounding of values in -1..1 (the ends) to a grid; what an entry of `CHANNEL_GRIDS` is."""

    def __call__(self, v: Tensor, bits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return levels and codes of `v` [R, C] clamped to -1..1, with gradients of both to `v`.

        Args:
            v: [R, C].
            bits: whole numbers, [1, C] or [R, C], at least 1.
            noise: [R, C] in 0..1 to round at random, or None to round to the nearest.
        """
        ...


CHANNEL_GRIDS: Registry[ChannelGrid] = Registry("channel grid")


def _through(value: Tensor, v: Tensor) -> Tensor:
    """Return exactly `value`, with a gradient of 1 to `v`."""
    return value.detach() + (v - v.detach())


def _snap(u: Tensor, noise: Tensor | None) -> Tensor:
    """Return whole numbers, straight through: the nearest, or at random with `u` as the mean."""
    whole = u.round() if noise is None else torch.floor(u + noise)
    return _through(whole, u)


@CHANNEL_GRIDS.register("affine")
def affine(v: Tensor, bits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Round to equal steps: the levels are ``-1 + 2 k / (2^b - 1)``."""
    top = torch.exp2(bits) - 1
    q = _snap((v.clamp(-1, 1) + 1) * (top / 2), noise).clamp(min=0).minimum(top)
    return q * (2 / top) - 1, q


@CHANNEL_GRIDS.register("log")
def logarithmic(v: Tensor, bits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Round to equal steps of the mu-law, which is the logarithm but linear near 0.

    ``F(v) = sign(v) ln(1 + 255 |v|) / ln 256`` is rounded by `affine`, and turned back.

    References:
        Smith, "Instantaneous companding of quantized signals", Bell System Technical Journal 36,
        1957; ITU-T G.711.
    """
    v = v.clamp(-1, 1)
    q, code = affine(torch.log1p(_MU * v.abs()) / math.log1p(_MU) * v.sign(), bits, noise)
    back = torch.expm1(q.abs() * math.log1p(_MU)) / _MU * q.sign()
    return _through(back, v), code


@CHANNEL_GRIDS.register("pow2")
def power_of_two(v: Tensor, bits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Round to the nearest exponent: the levels are ``+-2^-k`` for k below ``2^(b - 1)``.

    Zero has no level of its own; with 4 bits the smallest is 2^-7 of the range.

    References:
        Miyashita et al., "Convolutional Neural Networks using Logarithmic Data Representation",
        2016, equation 4: the exponent is rounded, not the value.
    """
    v = v.clamp(-1, 1)
    deepest = (torch.exp2(bits - 1) - 1).clamp(max=_DEEPEST)
    size = v.abs().clamp(min=2.0**-_DEEPEST)
    depth = _snap((-size.log2()).clamp(min=0).minimum(deepest), noise).minimum(deepest)
    positive = v >= 0
    level = torch.exp2(-depth) * torch.where(positive, 1.0, -1.0).to(v.dtype)
    top = torch.exp2(bits) - 1
    return _through(level, v), torch.where(positive, top - depth, depth)


def between_grids(
    grid: ChannelGrid,
    x: Tensor,
    low: Tensor,
    high: Tensor,
    bits: Tensor,
    tables: Tensor | None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``(1 - f) Q_b(x) + f Q_{b+1}(x)`` on any grid, and rates; as `channel_bits` does.

    Args:
        grid: an entry of `CHANNEL_GRIDS`.
        x: [R, C].
        low: [C].
        high: [C].
        bits: [G, C].
        tables: [C, 511] or None.
        noise: [R, C] in 0..1, or None.
    """
    rows = bits if len(bits) <= 1 else bits.repeat_interleave(len(x) // len(bits), 0)
    centre, half = (high + low) / 2, (high - low) / 2
    v = (x - centre) / half
    whole = rows.detach().floor().clamp(0, MOST_BITS - 1)
    values, rates = [], []
    for b in (whole, whole + 1):
        level, code = grid(v, b.clamp(min=1), noise)
        some = (b > 0).expand_as(v)
        values.append(torch.where(some, centre + half * level, centre))
        code = torch.where(some, code, 0.0)
        rates.append(None if tables is None else _rate(code, b, tables))
    share = rows - whole
    y = values[0] + share * (values[1] - values[0])
    if rates[0] is None or rates[1] is None:
        return y, x.new_zeros(len(x))
    return y, (rates[0] + share * (rates[1] - rates[0])).sum(1)


def _rate(code: Tensor, bits: Tensor, tables: Tensor) -> Tensor:
    """Return the bits of codes by their tables; the slope in `code` is that between neighbours."""
    at, top = code.detach().round().long(), torch.exp2(bits).long() - 1
    column = torch.arange(code.shape[1], device=code.device) * TABLE
    start, flat, held = column + offset(bits), tables.flatten(), tables.detach().flatten()
    slope = (held[start + (at + 1).minimum(top)] - held[start + (at - 1).clamp(min=0)]) / 2
    value: Tensor = flat[start + at]
    return value + slope * (code - code.detach())
