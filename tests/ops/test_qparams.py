from __future__ import annotations

import numpy as np
import pytest
import torch

from cmibq.ops.qparams import qparams, qparams_mse, reference, reference_mse
from tests.kernels.cases.base import finite

MODES = range(8)


def matrix(rows: int = 9, cols: int = 33) -> torch.Tensor:
    return torch.from_numpy(finite(np.random.default_rng(3), rows, cols))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_kernel_equals_reference(bits: int, mode: int) -> None:
    x = matrix()
    for got, want in zip(qparams(x, bits, mode), reference(x, bits, mode), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("mode", MODES)
def test_search_equals_reference(mode: int) -> None:
    x = torch.randn(9, 65, generator=torch.Generator().manual_seed(0))
    got = qparams_mse(x, 3, mode, n_grid=7, max_shrink=0.6)
    want = reference_mse(x, 3, mode, 7, 0.6)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[2], want[2], rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_search_is_never_worse_than_the_full_range(mode: int) -> None:
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    assert (qparams_mse(x, 2, mode)[2] <= qparams_mse(x, 2, mode, n_grid=1)[2]).all()


def test_hand_worked_grids() -> None:
    # 0.3 alone: a range of one point becomes 1e-5, and the zero point saturates at 0.
    scale, zero = qparams(torch.full((1, 4), 0.3), 4, 0)
    assert float(scale) == pytest.approx(1e-5 / 15, rel=1e-6)
    assert zero.item() == 0
    # With zero in range: 0 .. 0.3 in 15 steps.
    scale, zero = qparams(torch.full((1, 4), 0.3), 4, 2)
    assert float(scale) == pytest.approx(0.02, rel=1e-6)
    assert zero.item() == 0
    # All negative: the top code is 0.
    assert qparams(torch.full((1, 4), -0.3), 4, 2)[1].item() == 15
    # Symmetric: 0.7 / 7 and zero point 8; float16 of 0.1 is 0.0999755859375.
    scale, zero = qparams(torch.tensor([[0.7, -0.1]]), 4, 1 | 4)
    assert (float(scale), zero.item()) == (0.0999755859375, 8)
    # The smallest half scale is 2**-24, not 0.
    assert float(qparams(torch.zeros(1, 4), 8, 6)[0]) == 2.0**-24


@pytest.mark.parametrize(
    ("x", "bits", "mode", "message"),
    [
        (torch.ones(1, 2), 9, 0, "bits is 9, allowed are 1..8"),
        (torch.ones(1, 2), 4, 8, "mode is 8, allowed are 0..7"),
        (torch.ones(1, 2), 1, 1, "bits is 1, a symmetric range needs 2..8"),
        (torch.tensor([[1.0], [torch.nan]]), 4, 0, r"scale\[1\] is nan"),
        (torch.tensor([[1.0], [torch.inf]]), 4, 2, r"scale\[1\] is inf"),
        (torch.tensor([[2e6]]), 4, 6, r"scale\[0\] is inf"),
        (torch.ones(2, 0), 4, 0, r"x.shape\[1\] is 0; a minimum or maximum needs"),
    ],
)
def test_what_is_refused(x: torch.Tensor, bits: int, mode: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qparams(x, bits, mode)


def test_shrinkage_is_a_fraction() -> None:
    with pytest.raises(ValueError, match=r"max_shrink\[0\] is 1.5; the largest shrinkage"):
        qparams_mse(torch.ones(1, 2), 4, 0, max_shrink=1.5)


def test_opcheck_and_compile() -> None:
    x = matrix()
    torch.library.opcheck(torch.ops.cmibq.qparams.default, (x, 4, 6))
    torch.library.opcheck(torch.ops.cmibq.qparams_mse.default, (x, 4, 6, 3, 0.5))
    compiled = torch.compile(lambda x: qparams(x, 4, 6), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x)[0], qparams(x, 4, 6)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_use_the_reference(dtype: torch.dtype) -> None:
    assert qparams(matrix().to(dtype), 4, 2)[0].dtype == dtype
