"""Find the candidate with the least total loss without judging every candidate on all the data.

Losses of calibration tokens differ by orders of magnitude from token to token, but hardly from
candidate to candidate: what one token says about two candidates is a small difference of two large
numbers that move together. A race therefore judges all candidates on a few blocks of data, drops
those that cannot beat the leader by more than a tolerance, doubles the data for the rest, and goes
on until one is left or no data is.

Totals are estimated by the ratio of losses to a size that is known for every block beforehand (for
example its summed squared input), and blocks are taken in an order that spreads any prefix evenly
over small and large ones. Nothing is drawn at random: a race repeats bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import ConfigError

__all__ = ["Race", "race", "spread_order"]

F64 = NDArray[np.float64]
Ints = NDArray[np.intp]
Judge = Callable[[Ints, Ints], F64]


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


def spread_order(size: F64) -> Ints:
    """Return an order of blocks in which every prefix is spread evenly over their sizes.

    Blocks are ranked by size, largest first, and visited by the bit-reversed counter (van der
    Corput's sequence) over the ranks.

    Example:
        >>> spread_order(np.array([8.0, 7, 6, 5, 4, 3, 2, 1]))
        array([0, 4, 2, 6, 1, 5, 3, 7])
    """
    n = len(size)
    rank = np.argsort(-np.asarray(size, np.float64), kind="stable")
    bits = max(n - 1, 1).bit_length()
    counter = np.arange(1 << bits)
    place = np.zeros(1 << bits, np.intp)
    for bit in range(bits):
        place |= (counter >> bit & 1) << (bits - 1 - bit)
    return np.asarray(rank[place[place < n]], np.intp)


def _quantile(level: float, freedom: int) -> float:
    """Return the one-sided Student quantile by Hill's expansion around the normal one."""
    z = NormalDist().inv_cdf(level)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3


def _survivors(loss: F64, size: F64, rest: float, level: float, tolerance: float) -> NDArray:
    """Return which candidates may still beat the leader by more than the tolerance.

    Args:
        loss: [C, n] on the blocks seen.
        size: [n], their sizes.
        rest: summed size of the blocks not seen.
        level: confidence of one comparison.
        tolerance: of the leader's total.
    """
    seen, n = size.sum(), loss.shape[1]
    total = loss.sum(1)
    leader = int(np.argmin(total))
    gain = loss[leader] - loss  # [C, n], > 0 where a candidate beats the leader
    ratio = gain.sum(1) / seen
    scatter = np.sqrt(((gain - ratio[:, None] * size) ** 2).sum(1) / (n - 1) / n) * n / seen
    factor = _quantile(level, n - 1)
    bound = gain.sum(1) + rest * (ratio + factor * scatter)
    alive = np.asarray(bound > tolerance * total[leader] * (seen + rest) / seen)
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
        first: blocks in the first round; each round doubles them. From 4.
        error: probability allowed that a candidate is dropped wrongly, over the whole race.

    Returns:
        `Race`.

    Raises:
        ConfigError: an option is out of range, there are no candidates or no blocks.

    References:
        Maron and Moore, "Hoeffding races", NIPS 1993; Mnih et al., "Empirical Bernstein stopping",
        ICML 2008 (the paired form); Cochran, "Sampling techniques", 1977, ch. 6 (ratio estimator).

    Example:
        >>> table = np.array([[3.0], [1], [2]]) * np.linspace(1, 2, 64)
        >>> found = race(lambda c, b: table[np.ix_(c, b)], 3, np.linspace(1, 2, 64))
        >>> found.best, found.blocks
        (1, array([16, 16, 16]))
    """
    _check(candidates, size, tolerance, first, error)
    order = spread_order(size)
    loss = np.full((candidates, len(size)), np.nan)  # columns in visiting order
    alive, done = np.arange(candidates), 0
    rounds = max(len(size) / first, 1)
    level = 1 - error / (max(candidates - 1, 1) * (1 + np.log2(rounds)))
    while True:
        until = min(len(size), max(first, 2 * done))
        if len(size) - until < until // 2:
            until = len(size)  # a last round that is nearly everything may as well be
        new = judge(alive, order[done:until])
        loss[alive, done:until] = np.where(np.isfinite(new), new, np.inf)
        done = until
        seen = loss[alive, :done]
        finite = np.isfinite(seen).all(1)
        alive, seen = (alive[finite], seen[finite]) if finite.any() else (alive[:1], seen[:1])
        if done == len(size) or len(alive) == 1:
            break
        sizes = size[order[:done]]
        keep = _survivors(seen, sizes, size[order[done:]].sum(), level, tolerance)
        alive = alive[keep]
        if len(alive) == 1:
            break
    return _result(loss, size[order], alive)


def _result(loss: F64, size: F64, alive: Ints) -> Race:
    judged = ~np.isnan(loss)
    blocks = judged.sum(1)
    share = np.where(judged, size, 0).sum(1) / size.sum()
    with np.errstate(invalid="ignore"):
        total = np.where(judged, loss, 0).sum(1) / share
    total = np.where(np.isfinite(total), total, np.nan)
    best = int(alive[np.argmin(np.where(np.isnan(total[alive]), np.inf, total[alive]))])
    return Race(best, total, np.asarray(blocks, np.intp), alive, len(alive) == 1)


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
