"""Bits of channels under a hard budget: exact integers, and real bits with their gradient."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmibq.runtime import kernels

__all__ = ["Choice", "allocate", "project_bits", "project_bits_backward", "round_bits"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


class Choice(NamedTuple):
    """One option per unit, as `allocate` finds it.

    Args:
        option: uint8 [n], index of the option of each unit.
        distortion: total of the chosen distortions.
        cost: total of the chosen costs, at most the budget.
        gap: how far `distortion` can be from the smallest possible; 0.0: it is proven to be it.
        slope: distortion that one more unit of budget saves, at the budget; 0.0 where nothing more
            can be saved.
    """

    option: U8
    distortion: float
    cost: int
    gap: float
    slope: float


def allocate(
    distortion: F32,
    cost: I64,
    budget: int,
    *,
    weight: I64 | None = None,
    out: U8 | None = None,
) -> Choice:
    """Choose one option per unit so that the total distortion is smallest within a hard budget.

    Exact also for tables that are not convex: the lower hulls give a solution that spends all but a
    little, and the rest is spent by a dynamic program over the few options that can still matter.
    Sums and slopes are in double.

    Args:
        distortion: float32 [n, m], ``m <= 16`` options by growing cost. Any finite number, also
            negative; +infinity: not allowed. A larger cost need not mean less distortion.
        cost: int64 [m], what an option costs per weight, or [n, m], what it costs. At least 0, not
            falling along a row.
        budget: most that may be spent in all.
        weight: int64 [n], elements of each unit, only with costs [m]; None = 1.
        out: uint8 [n] to write the options to.

    Returns:
        `Choice`. Where steps buy exactly the same the unit of lowest index comes first; the result
        depends neither on threads nor on the CPU.

    Raises:
        ValueError: NaN or -infinity in `distortion`, a unit without an allowed option, costs that
            fall or are negative, a budget below the smallest possible cost.

    References:
        Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988;
        Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", 1995.

    Example:
        >>> d = np.array([[9.0, 4.0, 1.0], [5.0, 3.0, 2.0]], np.float32)
        >>> allocate(d, np.array([2, 3, 4]), 7)
        Choice(option=array([2, 1], dtype=uint8), distortion=4.0, cost=7, gap=0.0, slope=1.0)
    """
    cost = np.asarray(cost)
    if np.ndim(distortion) != 2 or cost.ndim not in (1, 2):
        raise ValueError(
            f"allocate: distortion has {np.ndim(distortion)} dimensions, cost {cost.ndim}; "
            "give distortion [n, m] and cost [m] or [n, m]"
        )
    n, m = distortion.shape
    k = kernels()
    option = np.empty(n, np.uint8) if out is None else out
    info, spent = np.empty(3), np.empty(1, np.int64)
    work = np.empty(k.allocate_workspace(n, m), np.uint8)
    flat, table = (cost, None) if cost.ndim == 1 else (None, cost)
    if table is not None and weight is not None:
        raise ValueError("allocate: weight needs costs [m]; multiply a table [n, m] by it instead")
    k.allocate(distortion, flat, weight, table, budget, option, info, spent, work)
    total, gap, slope = info.tolist()
    return Choice(option, total, int(spent[0]), gap, slope)


def project_bits(
    x: F32,
    target: float,
    lo: float,
    hi: float,
    *,
    weight: F32 | None = None,
    out: F32 | None = None,
) -> F32:
    """Return the bits in ``[lo, hi]`` with mean `target` that are nearest to `x`, row by row.

    They are ``min(hi, max(lo, x + tau))`` with one shift ``tau`` per row (water-filling).

    Args:
        x: float32 [R, C], wished bits or importance logits.
        target: weighted mean of every row of the result, in ``[lo, hi]``.
        lo: fewest bits, a float32 number.
        hi: most bits, a float32 number.
        weight: float32 [C], > 0: what a bit of each channel costs; None = 1.
        out: float32 [R, C] to write to; may be `x` itself.

    Returns:
        float32 [R, C]: `out` or a new array. A row with NaN or infinity becomes NaN.

    Raises:
        ValueError: `target` outside ``[lo, hi]``, a weight that is not finite and > 0.

    References:
        Cover and Thomas, "Elements of Information Theory", section 13.3.3.

    Example:
        >>> project_bits(np.array([[0.0, 1.0, 9.0]], np.float32), 4.0, 2.0, 8.0)
        array([[2., 2., 8.]], dtype=float32)
    """
    out = np.empty_like(x) if out is None else out
    kernels().project_row(x, weight, lo, hi, target, out)
    return out


def project_bits_backward(
    g: F32, b: F32, lo: float, hi: float, *, weight: F32 | None = None, out: F32 | None = None
) -> F32:
    """Return the gradient of `project_bits`: `g` less its mean over the channels off the ends.

    Args:
        g: float32 [R, C], gradient of the loss with respect to the result.
        b: float32 [R, C], the result of `project_bits`.
        lo: as in `project_bits`.
        hi: as in `project_bits`.
        weight: as in `project_bits`.
        out: float32 [R, C] to write to; may be `g` itself.

    Returns:
        float32 [R, C]: ``g - weight * sum(g) / sum(weight)``, sums over ``lo < b < hi``, there; 0
        elsewhere.

    Example:
        >>> b = np.array([[2.0, 3.0, 4.0, 8.0]], np.float32)
        >>> project_bits_backward(np.array([[5.0, 1.0, 2.0, 5.0]], np.float32), b, 2.0, 8.0)
        array([[ 0. , -0.5,  0.5,  0. ]], dtype=float32)
    """
    out = np.empty_like(g) if out is None else out
    kernels().project_bwd_row(g, b, weight, lo, hi, out)
    return out


def round_bits(b: F32, lo: int, hi: int, total: int, *, out: U8 | None = None) -> U8:
    """Round bits to integers whose sum is exactly `total`, row by row.

    Every channel keeps the whole part; the largest fractions get one more, of equal fractions the
    lowest index first. These are the integers nearest to `b` with that sum.

    Args:
        b: float32 [R, C], such as `project_bits` returns; finite.
        lo: fewest bits, 0..255.
        hi: most bits, lo..255.
        total: sum of every row, ``lo * C .. hi * C``.
        out: uint8 [R, C] to write to.

    Returns:
        uint8 [R, C]: `out` or a new array.

    Raises:
        ValueError: a total that cannot be met, NaN or infinity in `b`.

    Example:
        >>> round_bits(np.array([[2.5, 3.5, 6.0]], np.float32), 2, 8, 12)
        array([[3, 3, 6]], dtype=uint8)
    """
    out = np.empty(b.shape, np.uint8) if out is None else out
    kernels().round_bits_row(b, lo, hi, total, out)
    return out
