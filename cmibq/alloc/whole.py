"""Whole bits of channels: the integers of least expected distortion with an exact sum."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cmibq.arrays import allocate
from cmibq.errors import ConfigError

__all__ = ["budget", "expected_distortion", "whole_bits"]


def budget(target: float, weights: int) -> int:
    """Return the whole bits that a mean of `target` allows: ``floor(target * weights + 1e-6)``.

    Example:
        >>> budget(2.3, 10)
        23
    """
    return math.floor(target * weights + 1e-6)


def whole_bits(
    wishes: Tensor, lo: int, hi: int, total: int, *, costs: tuple[int, ...] = ()
) -> Tensor:
    """Return the integers in ``lo..hi`` that sum to `total` and minimise ``sum 4^(wish - bits)``.

    The distortion of a channel falls by a factor of four per bit, so it is convex: the bits that
    pay most, one after the other, are the optimum, and the gain of the next bit of a channel is
    ``3/4 * 4^(wish - bits)``. They are taken in the order of ``wish - bits``, which neither
    overflows nor underflows. With costs the budget is a knapsack, solved by
    `cmibq.arrays.allocate`.

    Args:
        wishes: [G, L], finite: half the binary logarithm of what a channel's error weighs.
        lo: fewest bits.
        hi: most bits.
        total: sum of every row; with costs the most that ``sum(costs * bits)`` may be.
        costs: what one bit of each channel costs, L integers from 1; () = 1.

    Returns:
        uint8 [G, L]. Of equal gains the lowest index comes first.

    Raises:
        ConfigError: a total outside ``lo * L .. hi * L``.

    References:
        Fox, "Discrete optimization via marginal analysis", Management Science 13, 1966.

    Example:
        >>> whole_bits(torch.tensor([[0.0, 1.0, 9.0]]), 2, 8, 12)
        tensor([[2, 2, 8]], dtype=torch.uint8)
    """
    channels = wishes.shape[1]
    weights = sum(costs) if costs else channels
    if not lo * weights <= total <= hi * weights:
        raise ConfigError(
            f"total is {total}; {channels} channels of {lo}..{hi} bits allow"
            f" {lo * weights}..{hi * weights}"
        )
    if costs:
        return _knapsack(wishes, lo, hi, total, costs)
    steps = torch.arange(lo, hi, device=wishes.device, dtype=wishes.dtype)
    gains = (wishes.detach()[:, :, None] - steps).flatten(1)
    order = gains.sort(dim=1, descending=True, stable=True).indices[:, : total - lo * channels]
    taken = torch.zeros_like(gains, dtype=torch.uint8).scatter_(1, order, 1)
    bits: Tensor = taken.view(len(wishes), channels, hi - lo).sum(2, dtype=torch.uint8) + lo
    return bits


def _knapsack(wishes: Tensor, lo: int, hi: int, total: int, costs: tuple[int, ...]) -> Tensor:
    """Return the bits of least distortion whose cost is at most `total`, row by row."""
    widths, weight = np.arange(lo, hi + 1), np.array(costs, np.int64)
    found = np.empty(tuple(wishes.shape), np.uint8)
    for row, out in zip(wishes.detach().double().cpu().numpy(), found, strict=True):
        distortion = 4.0 ** (row[:, None] - row.max() - (widths - lo))
        out[:] = widths[
            allocate(distortion.astype(np.float32), widths, total, weight=weight).option
        ]
    return torch.from_numpy(found).to(wishes.device)


def expected_distortion(wishes: Tensor, maps: Tensor) -> Tensor:
    """Return ``sum_c 4^(wish_c - map_c)``, every row of wishes under every map.

    Args:
        wishes: [G, L].
        maps: [M, L].

    Returns:
        float64 [G, M], every row in units of its own (the largest wish is taken as 0).

    Example:
        >>> expected_distortion(torch.tensor([[0.0, 2.0]]), torch.tensor([[0, 2], [1, 1]]))
        tensor([[0.1250, 0.2656]], dtype=torch.float64)
    """
    w = wishes.detach().double()
    shifted = torch.exp2(2 * (w - w.amax(1, keepdim=True)))
    return shifted @ torch.exp2(-2 * maps.double()).mT
