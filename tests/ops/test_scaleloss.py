from __future__ import annotations

import pytest
import torch

from cmibq.ops.scaleloss import reference, scaleloss

CASES = [(4, 8, 6, 0, 1), (3, 0, 0, 0, 2), (4, 16, 5, 8, 1), (8, 0, 1, 6, 2)]


def operands(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 32, generator=g, dtype=dtype) for n in (37, 45))
    s = torch.randn(3, 32, generator=g, dtype=dtype).exp()
    return x, w, torch.rand(37, generator=g, dtype=torch.float64), s


@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_reference(case: tuple[int, ...]) -> None:
    got = torch.ops.cmibq.scaleloss(*operands(), *case)
    # float32 chains of 32 products against double
    torch.testing.assert_close(got, reference(*operands(), *case), rtol=32 * 2.0**-24, atol=0)


def test_other_dtypes_use_the_reference() -> None:
    args = operands(torch.float64)
    got = torch.ops.cmibq.scaleloss(*args, *CASES[0])
    assert torch.equal(got, reference(*args, *CASES[0]))


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.cmibq.scaleloss.default, (*operands(), *CASES[0]))


def test_token_weights_default_to_ones() -> None:
    x, w, _, s = operands()
    got = scaleloss(x, w, s, bits=4, mode=6, group_size=8, power=2)
    want = reference(x, w, torch.ones(37, dtype=torch.float64), s, 4, 8, 6, 0, 2)
    torch.testing.assert_close(got, want, rtol=32 * 2.0**-24, atol=0)
