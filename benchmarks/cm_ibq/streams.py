"""Codes of baselines as bytes: the range coder that the layer's streams are written with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmibq.arrays.rangecode import RangeTables, integer_frequencies, range_decode, range_encode
from cmibq.ops.channel_bits import TABLE

__all__ = ["coded_bytes", "codes_of", "counted"]


def codes_of(values: Tensor, low: Tensor, high: Tensor, bits: Tensor) -> Tensor:
    """Return the codes of values that lie on the levels of their channels, uint8 [R, L].

    Args:
        values: [R, L].
        low: [L], lowest level.
        high: [L], highest.
        bits: [1, L] whole bits.
    """
    top = torch.exp2(bits) - 1
    return ((values - low) / (high - low) * top).round().clamp(min=0).minimum(top).byte()


def counted(codes: Tensor, bits: Tensor) -> Tensor:
    """Return how often each code of each channel occurs, [L, 511]; 0 for other widths.

    Args:
        codes: uint8 [R, L].
        bits: [L] whole bits.
    """
    rows = codes.long() + (2 ** bits.long() - 1)
    found = [torch.bincount(column, minlength=TABLE) for column in rows.unbind(1)]
    return torch.stack(found).float()


def coded_bytes(
    codes: Tensor, rates: Tensor, bits: Tensor, kept: Tensor | None = None
) -> list[int]:
    """Return the bytes of the stream of every picture, without a header; each is decoded again.

    Args:
        codes: uint8 [B, T, L].
        rates: [L, 511] bits of all codes, see `cmibq.nn.prior.DiscretePrior.tables`.
        bits: [L] whole bits.
        kept: bool [B, T], tokens that are sent; None: all.
    """
    shares = []
    for row, width in zip(rates.detach().double().numpy(), bits.tolist(), strict=True):
        first = 2 ** int(width) - 1
        shares.append(integer_frequencies(0.5 ** row[first : 2 * first + 1]))
    tables = RangeTables.of(shares)
    context = np.arange(len(shares), dtype=np.int32)[None]
    found = []
    for number in range(len(codes)):
        sample: np.ndarray[Any, Any] = codes[number].numpy()
        if kept is not None:
            sample = np.ascontiguousarray(sample[kept[number].numpy()])
        group = np.zeros(len(sample), np.int32)
        stream = range_encode(sample, tables, context, group=group)
        opened = range_decode(stream, tables, context, len(sample), group=group)
        assert (opened == sample).all(), f"picture {number} is decoded to other codes"
        found.append(len(stream.payload))
    return found
