"""Exact allocation against a dynamic program over every reachable cost."""

from __future__ import annotations

import numpy as np
import pytest

from cmibq.arrays import allocate
from cmibq.runtime import kernels


def best_total(d: np.ndarray, table: np.ndarray, budget: int) -> float | None:
    """Return the smallest total within the budget; None if there is none."""
    best = {0: 0.0}
    for row, costs in zip(d.astype(np.float64), table, strict=True):
        more: dict[int, float] = {}
        for have, total in best.items():
            for value, cost in zip(row, costs, strict=True):
                spent = have + int(cost)
                if spent <= budget and total + value < more.get(spent, np.inf):
                    more[spent] = total + value
        best = more
    return min(best.values(), default=None)


def tables(rng: np.random.Generator, n: int, m: int, kind: str) -> np.ndarray:
    """Whole numbers, so that totals are exact."""
    if kind == "any":
        d = rng.integers(-20, 20, (n, m))
    elif kind == "falling":
        d = np.sort(rng.integers(0, 1000, (n, m)), 1)[:, ::-1]
    elif kind == "convex":
        d = np.cumsum(np.sort(rng.integers(0, 64, (n, m)), 1), 1)[:, ::-1]
    elif kind == "equal units":
        d = np.repeat(np.sort(rng.integers(0, 50, (1, m)), 1)[:, ::-1], n, 0)
    else:
        d = np.full((n, m), 7)
    d = d.astype(np.float32)
    if rng.random() < 0.2:
        d[rng.random((n, m)) < 0.2] = np.inf
    return np.ascontiguousarray(d)


@pytest.mark.parametrize("costs", ["shared", "weighted", "table"])
@pytest.mark.parametrize("kind", ["any", "falling", "convex", "equal units", "flat"])
def test_it_is_the_optimum(kind: str, costs: str, rng: np.random.Generator) -> None:
    solved = 0
    for _ in range(130):
        n, m = int(rng.integers(1, 10)), int(rng.integers(1, 8))
        d = tables(rng, n, m, kind)
        shared = np.sort(rng.choice(np.arange(1, 9), m, replace=False)).astype(np.int64)
        weight = rng.integers(0, 30, n) if costs == "weighted" else None
        table = np.cumsum(rng.integers(0, 20, (n, m)), 1)
        if costs != "table":
            table = shared * (np.ones((n, 1), np.int64) if weight is None else weight[:, None])
        budget = int(rng.integers(max(0, table[:, 0].sum() - 2), table[:, -1].sum() + 3))
        want = best_total(d, table, budget)
        cost = table if costs == "table" else shared
        if want is None or np.isinf(want):
            with pytest.raises(ValueError, match=r"allocate: (budget|distortion)"):
                allocate(d, cost, budget, weight=weight)
            continue
        got = allocate(d, cost, budget, weight=weight)
        chosen = np.arange(n), got.option
        assert got.gap == 0.0
        assert got.distortion == want == d[chosen].astype(np.float64).sum()
        assert got.cost == table[chosen].sum() <= budget
        solved += 1
    assert solved > 50


@pytest.mark.parametrize("kind", ["any", "falling", "equal units", "flat"])
def test_many_units(kind: str, rng: np.random.Generator) -> None:
    """Enough units for the sample, the bands and the completion; costs of unequal steps."""
    cost = np.array([2, 3, 4, 8])
    for n in (300, 1000):
        d = tables(rng, n, 4, kind)
        d[np.isinf(d)] = 9
        for budget in (2 * n + 1, 3 * n + 7, 5 * n, 8 * n - 3):
            best = np.full(budget + 1, np.inf)
            best[0] = 0
            for row in d.astype(np.float64):
                more = np.full_like(best, np.inf)
                for c, v in zip(cost, row, strict=True):
                    more[c:] = np.minimum(more[c:], best[: len(best) - c] + v)
                best = more
            got = allocate(d, cost, budget)
            assert got.gap == 0.0
            assert got.distortion == best.min()


def test_convex_tables_equal_a_stable_sort(rng: np.random.Generator) -> None:
    """Ties go to the lowest index; 20000 units are several blocks and several bands."""
    for levels in (3, 50, 10**6):
        steps = np.sort(rng.integers(0, levels, (20000, 6)), 1)[:, ::-1].astype(np.float32)
        d = np.zeros((20000, 7), np.float32)
        d[:, :6] = np.cumsum(steps[:, ::-1].astype(np.float64), 1)[:, ::-1]
        flat = (d[:, :-1] - d[:, 1:]).ravel()
        budget = 2 * 20000 + 51234
        order = np.argsort(-flat, kind="stable")[:51234]
        order = order[flat[order] > 0]
        want = np.bincount(order // 6, minlength=20000)
        assert np.array_equal(allocate(d, np.arange(2, 9), budget).option, want)


def test_threads_and_levels_do_not_change_it(rng: np.random.Generator) -> None:
    d = rng.gamma(0.5, 1.0, (30000, 5)).astype(np.float32)
    weight = rng.integers(1, 3000, 30000)
    out = []
    for isa in ("scalar", None):
        for threads in (1, 2, 3, 7):
            k = kernels(threads, isa)
            for w in (None, weight):
                choice, info = np.empty(30000, np.uint8), np.empty(3)
                total = 4 * 30000 if w is None else 4 * int(w.sum()) - 5
                work = np.empty(k.allocate_workspace(30000, 5), np.uint8)
                cost = np.arange(2, 7)
                k.allocate(d, cost, w, None, total, choice, info, np.empty(1, np.int64), work)
                out.append((choice, info))
    for choice, info in out[2:]:
        first = out[0] if any(np.array_equal(choice, c) for c, _ in out[:1]) else out[1]
        assert np.array_equal(choice, first[0])
        assert np.array_equal(info, first[1])


def test_weighted_units_leave_little(rng: np.random.Generator) -> None:
    d = (np.exp(rng.normal(size=(5000, 1))) * 4.0 ** -np.arange(2, 9)).astype(np.float32)
    weight = rng.integers(1, 10**6, 5000)
    budget = 4 * int(weight.sum()) - 1
    got = allocate(d, np.arange(2, 9), budget, weight=weight)
    assert got.gap <= 1e-9 * got.distortion
    assert 0 <= budget - got.cost < 8 * 10**6


def test_worked_by_hand() -> None:
    """Hull steps of 3 cannot spend 4 more: the interior option of one unit does."""
    d = np.array([[10, 9, 9, 0], [10, 9, 9, 0]], np.float32)
    got = allocate(d, np.array([1, 2, 3, 4]), 6)
    assert got.option.tolist() in ([3, 1], [1, 3])
    assert (got.distortion, got.cost, got.gap) == (9.0, 6, 0.0)


def test_slack_and_exact_budgets() -> None:
    d = np.array([[4, 2, 1], [3, 3, 3]], np.float32)
    cost = np.array([1, 2, 3])
    assert allocate(d, cost, 100).option.tolist() == [2, 0]  # what saves nothing is not bought
    assert allocate(d, cost, 100).slope == 0.0
    assert allocate(d, cost, 2).option.tolist() == [0, 0]
    assert allocate(d[:0], cost, 0).option.shape == (0,)


def test_refused() -> None:
    d, cost = np.ones((3, 2), np.float32), np.array([1, 2])
    with pytest.raises(ValueError, match=r"budget\[3\] is 2; the index is the smallest budget"):
        allocate(d, cost, 2)
    for bad in (np.nan, -np.inf):
        wrong = d.copy()
        wrong[1, 1] = bad
        with pytest.raises(ValueError, match=r"distortion\[3\] is -?(nan|inf); a number, or"):
            allocate(wrong, cost, 9)
    wrong = d.copy()
    wrong[2] = np.inf
    with pytest.raises(ValueError, match=r"distortion\[2\] is inf; a unit must have an option"):
        allocate(wrong, cost, 9)
    with pytest.raises(ValueError, match=r"cost\[1\] is 1; costs are at least 0"):
        allocate(d, np.array([2, 1]), 9)
    with pytest.raises(ValueError, match=r"weight\[1\] is -4; every weight"):
        allocate(d, cost, 9, weight=np.array([1, -4, 1]))
    with pytest.raises(ValueError, match="costs of all units must sum to less"):
        allocate(d, np.array([1, 2**62]), 9)
    with pytest.raises(ValueError, match="distortion has 1 dimensions, cost 1; give"):
        allocate(d[0], cost, 9)
    with pytest.raises(ValueError, match="weight needs costs"):
        allocate(d, np.ones((3, 2), np.int64), 9, weight=np.ones(3, np.int64))
    with pytest.raises(ValueError, match=r"options is 17, allowed are 1..16"):
        allocate(np.ones((3, 17), np.float32), np.arange(17), 9)
