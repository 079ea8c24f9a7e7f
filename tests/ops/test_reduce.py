from __future__ import annotations

import numpy as np
import pytest
import torch

from cmibq.ops import absmax, abssum, minmax
from cmibq.ops.reduce import reference_absmax, reference_abssum, reference_minmax
from tests.kernels.cases.base import some_nasty


def matrix() -> torch.Tensor:
    return torch.from_numpy(some_nasty(np.random.default_rng(5), 9, 33))


def same(got: torch.Tensor, want: torch.Tensor, rtol: float = 0.0) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=0, equal_nan=True)


@pytest.mark.parametrize("axis", [0, 1])
def test_kernels_equal_references(axis: int) -> None:
    x = matrix()
    for got, want in zip(minmax(x, axis=axis), reference_minmax(x, axis), strict=True):
        same(got, want)
    same(absmax(x, axis=axis), reference_absmax(x, axis))
    weight = torch.rand(9, dtype=torch.float64) if axis else None
    same(abssum(x, weight=weight, axis=axis), reference_abssum(x, weight, axis), rtol=1e-12)


def test_a_row_of_weight_zero_is_left_out() -> None:
    x = torch.tensor([[1.0, -2.0], [torch.nan, torch.inf]])
    weight = torch.tensor([0.5, 0.0], dtype=torch.float64)
    for sums in (abssum(x, weight=weight, axis=1), reference_abssum(x, weight, 1)):
        assert sums.tolist() == [0.5, 1.0]


def test_nothing_has_no_minimum() -> None:
    with pytest.raises(ValueError, match=r"x.shape\[1\] is 0; a minimum or maximum needs"):
        minmax(torch.ones(2, 0))
    with pytest.raises(ValueError, match=r"x.shape\[0\] is 0; a minimum or maximum needs"):
        minmax(torch.ones(0, 2), axis=1)
    assert absmax(torch.ones(2, 0)).tolist() == reference_absmax(torch.ones(2, 0), 0).tolist()
    assert abssum(torch.ones(0, 2), axis=1).tolist() == [0.0, 0.0]


def test_weights_belong_to_columns() -> None:
    weight = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="weight weighs rows, so it needs axis=1"):
        abssum(torch.ones(2, 3), weight=weight)
    with pytest.raises(ValueError, match="weight: dimension R is 2, expected 4"):
        abssum(torch.ones(4, 3), weight=weight, axis=1)


def test_there_is_no_negative_zero() -> None:
    for axis in (0, 1):
        for end in minmax(torch.full((3, 3), -0.0), axis=axis):
            assert not end.signbit().any()


@pytest.mark.parametrize("axis", [0, 1])
def test_opcheck(axis: int) -> None:
    x = torch.randn(4, 6)
    weight = torch.rand(4, dtype=torch.float64) if axis else None
    torch.library.opcheck(torch.ops.cmibq.minmax.default, (x, axis))
    torch.library.opcheck(torch.ops.cmibq.absmax.default, (x, axis))
    torch.library.opcheck(torch.ops.cmibq.abssum.default, (x, weight, axis))
    compiled = torch.compile(lambda x: minmax(x, axis=axis), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x)[0], minmax(x, axis=axis)[0])
