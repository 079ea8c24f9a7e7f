from __future__ import annotations

import numpy as np
import pytest
import torch

from cmibq.arrays import project_bits as project_array
from cmibq.arrays import project_bits_backward
from cmibq.ops.alloc import (
    project_bits,
    reference_project,
    reference_project_backward,
    reference_round,
    round_bits,
)


def wishes(rows: int, cols: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + cols)
    return torch.randn(rows, cols, generator=generator) * spread


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (4, 17), (8, 256), (2, 4096)])
def test_kernel_equals_reference_and_meets_the_mean(shape: tuple[int, int], weighted: bool) -> None:
    x = wishes(*shape)
    w = torch.rand(shape[1]) + 0.1 if weighted else None
    cost = (torch.ones(shape[1]) if w is None else w).double()
    for target in (2.0, 2.001, 3.5, 7.9, 8.0):
        got = project_bits(x, target, 2.0, 8.0, weight=w)
        want = reference_project(x.double(), w, target, 2.0, 8.0)
        assert torch.allclose(got.double(), want, rtol=0, atol=1e-6)
        assert float(got.min()) >= 2.0
        assert float(got.max()) <= 8.0
        mean = (got.double() * cost).sum(1) / cost.sum()
        assert float((mean - target).abs().max()) < 1e-6


BIG = 3.4028235e38


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ([3e38] * 4, [4, 4, 4, 4]),
        ([-3e38] * 4, [4, 4, 4, 4]),
        ([BIG, BIG, -BIG, -BIG], [6, 6, 2, 2]),
        ([BIG, -BIG, 1.0, 2.0], [8, 2, 2.5, 3.5]),
        ([3e38, 2e38, 1e30, -5.0], [8, 4, 2, 2]),
        ([2.0**30, 2.0**30, 2.0**30 + 128, 0.0], [3, 3, 8, 2]),
    ],
)
def test_huge_wishes(row: list[float], want: list[float]) -> None:
    """A shift of 3e38 has no bits left for fractions: the kernel and the reference go there."""
    x = torch.tensor([row, [1.0, 2.0, 3.0, 4.0]]).requires_grad_()
    got = project_bits(x, 4.0, 2.0, 8.0)
    assert got[0].tolist() == pytest.approx(want, abs=1e-6)
    assert torch.equal(got[1], project_bits(x[1:].detach(), 4.0, 2.0, 8.0)[0])
    assert reference_project(x.detach(), None, 4.0, 2.0, 8.0).tolist() == got.tolist()
    inplace = x.detach().clone().numpy()
    assert project_array(inplace, 4.0, 2.0, 8.0, out=inplace).tolist() == got.tolist()
    got.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2))
    free = torch.tensor([2 < v < 8 for v in want])
    g = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mean = g[free].mean() if free.any() else 0.0
    assert x.grad is not None
    assert x.grad[0].tolist() == torch.where(free, g - mean, 0.0).tolist()


def test_it_is_the_nearest_point() -> None:
    """No feasible point that a small exchange reaches is nearer (variational inequality)."""
    x = wishes(1, 9).double()
    b = project_bits(x, 4.0, 2.0, 8.0)
    for seed in range(50):
        other = project_bits(wishes(1, 9 + 0 * seed, 1.0 + seed).double(), 4.0, 2.0, 8.0)
        assert float(((x - b) * (other - b)).sum()) <= 1e-9


def test_worked_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 10.0]])  # free 1..3 rise by 4/3, the last is at the end
    got = project_bits(x, 4.5, 1.0, 8.0)
    assert torch.allclose(got, torch.tensor([[1 + 4 / 3, 2 + 4 / 3, 3 + 4 / 3, 8.0]]))
    g = torch.tensor([[1.0, 2.0, 6.0, 9.0]])
    assert project_bits_backward(g.numpy(), got.numpy(), 1.0, 8.0).tolist() == [[-2, -1, 3, 0]]


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient(weighted: bool) -> None:
    x = wishes(3, 7).double().requires_grad_()
    w = torch.rand(7, dtype=torch.float64) + 0.1 if weighted else None
    assert torch.autograd.gradcheck(lambda v: project_bits(v, 4.0, 2.0, 8.0, weight=w), (x,))


@pytest.mark.parametrize("weighted", [False, True])
def test_backward_kernel_equals_reference(weighted: bool) -> None:
    x, g = wishes(5, 33).requires_grad_(), wishes(5, 33, 1.0)
    w = torch.rand(33) + 0.1 if weighted else None
    b = project_bits(x, 4.0, 2.0, 8.0, weight=w)
    b.backward(g)
    assert x.grad is not None
    want = reference_project_backward(g.double(), b.detach().double(), w, 2.0, 8.0)
    assert torch.allclose(x.grad.double(), want, atol=1e-6)
    free = (b > 2) & (b < 8)
    assert torch.equal(x.grad != 0, free)
    if w is None:  # a common shift of the wishes changes nothing
        assert float(x.grad.sum(1).abs().max()) < 1e-5


def test_nan_and_infinity_make_a_row_nan() -> None:
    x = wishes(4, 20)
    x[1, 3], x[2, 0], x[3, 5] = float("nan"), float("inf"), -float("inf")
    x.requires_grad_()
    b = project_bits(x, 4.0, 2.0, 8.0)
    assert b.isnan().all(1).tolist() == [False, True, True, True]
    assert reference_project(x.detach(), None, 4.0, 2.0, 8.0).isnan().all(1).tolist() == [
        False,
        True,
        True,
        True,
    ]
    b[0].sum().backward()
    assert x.grad is not None
    assert x.grad[1:].abs().sum() == 0


def test_far_groups_and_flat_rows() -> None:
    x = torch.tensor([[-1e6, -1e6, 1e6, 1e6], [5.0, 5.0, 5.0, 5.0]])
    assert project_bits(x, 5.0, 2.0, 8.0).tolist() == [[2, 2, 8, 8], [5, 5, 5, 5]]
    assert project_bits(x, 4.0, 2.0, 8.0).tolist() == [[2, 2, 6, 6], [4, 4, 4, 4]]


def test_refused() -> None:
    x = wishes(2, 3)
    with pytest.raises(ValueError, match=r"target is 9.0; the mean must lie in 2.0..8.0"):
        project_bits(x, 9.0, 2.0, 8.0)
    with pytest.raises(ValueError, match=r"target\[0\] is nan; the mean must lie"):
        project_array(x.numpy(), float("nan"), 2.0, 8.0)
    with pytest.raises(ValueError, match=r"weight\[1\] is 0; every weight must be finite"):
        project_bits(x, 4.0, 2.0, 8.0, weight=torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"lo/hi\[1\] is 2; the ends"):
        project_array(x.numpy(), 3.0, 3.0, 2.0)
    with pytest.raises(ValueError, match=r"total is 25; it must lie in 6..24"):
        round_bits(x, 2, 8, 25)
    with pytest.raises(ValueError, match=r"b\[0\] is nan; every value must be finite"):
        round_bits(torch.full((1, 3), float("nan")), 2, 8, 9)


@pytest.mark.parametrize("cols", [1, 2, 7, 64, 1025])
def test_rounding_meets_the_sum_and_is_nearest(cols: int) -> None:
    for target in (2.0, 3.3, 4.0, 7.75):
        total = int(target * cols + 1e-6)
        b = project_bits(wishes(5, cols), target, 2.0, 8.0)
        got = round_bits(b, 2, 8, total)
        assert (got.long().sum(1) == total).all()
        assert float((got - b).abs().max()) <= 1.0 + 1e-6
        want = reference_round(b, 2, 8, total)
        assert ((got - b).square().sum(1) <= (want - b).square().sum(1) + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("total", [2 * 300, 700, 1299, 1801, 2399, 8 * 300])
def test_rounding_meets_a_sum_that_is_far_away(total: int, dtype: torch.dtype) -> None:
    """Several steps per channel, and sums of more than 256, which bfloat16 does not have."""
    b = (torch.rand(3, 300, generator=torch.Generator().manual_seed(total)) * 6 + 2).to(dtype)
    got = round_bits(b, 2, 8, total)
    assert got.sum(1).tolist() == [total] * 3
    assert (int(got.min()), int(got.max())) >= (2, 2)
    assert int(got.max()) <= 8
    assert torch.equal(got, round_bits(b.float(), 2, 8, total))
    with pytest.raises(ValueError, match="finite"):
        round_bits(b / 0, 2, 8, total)


def test_rounding_of_ties_takes_the_lowest_index() -> None:
    assert round_bits(torch.full((1, 6), 2.5), 2, 8, 15).tolist() == [[3, 3, 3, 2, 2, 2]]
    assert round_bits(torch.full((1, 3), 8.0), 2, 8, 20).tolist() == [[6, 7, 7]]


def test_opcheck() -> None:
    x, w = wishes(3, 5).requires_grad_(), torch.rand(5) + 0.1
    for weight in (None, w):
        torch.library.opcheck(torch.ops.cmibq.project_bits.default, (x, weight, 4.0, 2.0, 8.0))
        b = project_bits(x, 4.0, 2.0, 8.0, weight=weight).detach()
        torch.library.opcheck(
            torch.ops.cmibq.project_bits_backward.default, (x.detach(), b, weight, 2.0, 8.0)
        )
    torch.library.opcheck(torch.ops.cmibq.round_bits.default, (x.detach(), 2, 8, 12))


def test_out_is_used_and_may_be_the_input() -> None:
    x = np.array([[0.0, 1.0, 9.0]], np.float32)
    assert project_array(x, 4.0, 2.0, 8.0, out=x) is x
    assert x.tolist() == [[2, 2, 8]]
