"""Find the candidate with the least total loss without judging every candidate on all the data.

Losses of calibration tokens differ by orders of magnitude from token to token, but hardly from
candidate to candidate: what one token says about two candidates is a small difference of two large
numbers that move together. A race therefore judges all candidates on a few blocks of data, drops
those that cannot beat the leader by more than a tolerance, doubles the data for the rest, and goes
on until one is left or no data is.

Blocks are drawn in proportion to a size that is known for every block beforehand (for example its
summed squared input), and totals are estimated by the mean of loss over size: ratios scatter far
less than losses, and no block that could decide the race is left out for long. Draws are points of
a low-discrepancy sequence, not random numbers: a race repeats bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import ConfigError

__all__ = ["Race", "drawn_blocks", "race"]

F64 = NDArray[np.float64]
Ints = NDArray[np.intp]
Bool = NDArray[np.bool_]
Judge = Callable[[Ints, Ints], F64]
LAST_ROUND = 0.6
"""Share of the blocks from which a round takes all that are left."""


@dataclass(frozen=True, eq=False)
class Race:
    """How a race went.

    Args:
        best: index of the candidate kept.
        losses: float64 [C], total loss of each candidate: estimated from the blocks it was judged
            on, exact (but for the precision of the judge) where those were all blocks.
        blocks: int [C], number of blocks each candidate was judged on.
        finalists: candidates that were still in when the race ended, ascending; `best` is one.
        separated: False when data ran out before one was left: then all finalists were judged on
            all blocks and `best` is the exact minimum of those.
    """

    best: int
    losses: F64
    blocks: Ints
    finalists: Ints = field(repr=False)
    separated: bool = True


def drawn_blocks(size: F64, count: int) -> Ints:
    """Return the blocks met by the first `count` points of van der Corput's sequence.

    Blocks lie end to end on [0, 1) with lengths in proportion to their sizes, in their order, so
    every prefix is spread evenly over the data; a large block is met several times.

    Example:
        >>> drawn_blocks(np.array([2.0, 1, 1]), 4)
        array([0, 1, 0, 2])
    """
    bits = max(count - 1, 1).bit_length()
    counter = np.arange(count)
    point = np.zeros(count)
    for bit in range(bits):
        point += (counter >> bit & 1) * 0.5 ** (bit + 1)
    edges = np.cumsum(size)
    met: Ints = np.searchsorted(edges, point * edges[-1], side="right")
    return np.minimum(met, len(size) - 1)


def _quantile(level: float, freedom: int) -> float:
    """Return the one-sided Student quantile by Hill's expansion around the normal one."""
    z = NormalDist().inv_cdf(level)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3


def _survivors(ratio: F64, unseen: float, level: float, tolerance: float) -> Bool:
    """Return which candidates may still beat the leader by more than the tolerance.

    Args:
        ratio: [C, n], loss over size at every point drawn.
        unseen: fraction of the summed size in blocks not seen yet.
        level: confidence of one comparison.
        tolerance: of the leader's total.
    """
    count = ratio.shape[1]
    mean = ratio.mean(1)
    leader = int(np.argmin(mean))
    gain = ratio[leader] - ratio  # [C, n], > 0 where a candidate beats the leader
    error = gain.std(1, ddof=1) * np.sqrt(unseen / count)
    bound = gain.mean(1) + _quantile(level, count - 1) * error
    alive = np.asarray(bound > tolerance * mean[leader])
    alive[leader] = True
    return alive


def race(
    judge: Judge,
    candidates: int,
    size: F64,
    *,
    tolerance: float = 5e-4,
    first: int = 16,
    error: float = 1e-4,
) -> Race:
    """Find the best of some candidates on blocks of data.

    Args:
        judge: ``judge(which, blocks) -> float64 [len(which), len(blocks)]``, the loss of some
            candidates on some blocks, >= 0; not finite = this candidate can never win.
        candidates: C.
        size: float64 [B], > 0: expected loss of a block up to a common factor. Good sizes make
            a race short; wrong ones make it long, not wrong.
        tolerance: a candidate is dropped once it cannot be better than the leader by more than this
            fraction of the leader's loss.
        first: blocks drawn in the first round; each round doubles them. From 4.
        error: probability allowed that a candidate is dropped wrongly, over the whole race.

    Returns:
        `Race`; where no candidate has finite losses its `best` is 0 and its losses are NaN.

    Raises:
        ConfigError: an option is out of range, there are no candidates or no blocks.

    References:
        Maron and Moore, "Hoeffding races", NIPS 1993; Mnih et al., "Empirical Bernstein stopping",
        ICML 2008 (the paired form); Cochran, "Sampling techniques", 1977, ch. 9A (draws in
        proportion to size).

    Example:
        >>> table = np.array([[3.0], [1], [2]]) * np.linspace(1, 2, 64)
        >>> found = race(lambda c, b: table[np.ix_(c, b)], 3, np.linspace(1, 2, 64))
        >>> found.best, found.blocks
        (1, array([16, 16, 16]))
    """
    size = np.asarray(size, np.float64)
    _check(candidates, size, tolerance, first, error)
    first = min(first, 4 * len(size))
    total = size.sum()
    points = drawn_blocks(size, 1 << (4 * max(len(size), first) - 1).bit_length())
    loss = np.full((candidates, len(size)), np.nan)
    seen = np.zeros(len(size), bool)
    alive, count = np.arange(candidates), first
    rounds = 2 + np.log2(max(len(size) / first, 1))
    level = 1 - error / (max(candidates - 1, 1) * rounds)
    while True:
        new = np.setdiff1d(points[:count], np.flatnonzero(seen))
        if seen.sum() + len(new) > LAST_ROUND * len(size) or count >= len(points):
            new = np.flatnonzero(~seen)  # what is nearly everything may as well be all
        if len(new):
            judged = judge(alive, new)
            loss[np.ix_(alive, new)] = np.where(np.isfinite(judged), judged, np.inf)
        seen[new] = True
        finite = np.isfinite(loss[np.ix_(alive, np.flatnonzero(seen))]).all(1)
        alive = alive[finite] if finite.any() else alive[:1]
        if seen.all() or len(alive) == 1:
            break
        ratio = loss[np.ix_(alive, points[:count])] / size[points[:count]]
        alive = alive[_survivors(ratio, 1 - size[seen].sum() / total, level, tolerance)]
        if len(alive) == 1:
            break
        count *= 2
    return _result(loss, size, points[:count], alive)


def _result(loss: F64, size: F64, points: Ints, alive: Ints) -> Race:
    """Estimate every candidate from the points of the rounds it was in; all blocks are exact."""
    totals = np.empty(len(loss))
    for c, row in enumerate(loss):
        mine = points[~np.isnan(row[points])]  # a prefix: later rounds are NaN
        whole = not np.isnan(row).any()
        totals[c] = row.sum() if whole else (row[mine] / size[mine]).mean() * size.sum()
    totals[~np.isfinite(totals)] = np.nan
    best = int(alive[np.argmin(np.where(np.isnan(totals[alive]), np.inf, totals[alive]))])
    blocks = np.asarray((~np.isnan(loss)).sum(1), np.intp)
    return Race(best, totals, blocks, alive, len(alive) == 1)


def _check(candidates: int, size: F64, tolerance: float, first: int, error: float) -> None:
    if candidates < 1 or len(size) < 1:
        raise ConfigError(f"{candidates} candidates, {len(size)} blocks; a race needs one of each")
    if not (np.isfinite(size).all() and (np.asarray(size) > 0).all()):
        raise ConfigError("size holds values that are not finite and > 0; give every block one")
    if first < 4 or not 0 <= tolerance < 1 or not 0 < error < 1:
        raise ConfigError(
            f"first is {first}, tolerance {tolerance}, error {error}; allowed are first >= 4, "
            "tolerance in [0, 1), error in (0, 1)"
        )
