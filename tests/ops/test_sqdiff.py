from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmibq.ops import mean_square_error


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 7, 11, generator=g, dtype=dtype) for _ in range(2))
    return a.requires_grad_(), b.requires_grad_()


def test_equals_torch() -> None:
    a, b = operands()
    g = torch.tensor([0.5, -1.0, 2.0])
    want = (a - b).square().flatten(1).mean(1)
    got = mean_square_error(a, b)
    torch.testing.assert_close(got, want)
    pairs = zip(
        torch.autograd.grad(got, (a, b), g), torch.autograd.grad(want, (a, b), g), strict=True
    )
    for x, y in pairs:
        torch.testing.assert_close(x, y)


def test_gradient_and_opcheck() -> None:
    assert torch.autograd.gradcheck(mean_square_error, operands(torch.float64))
    a, b = (t.detach().flatten(1).requires_grad_() for t in operands())
    torch.library.opcheck(torch.ops.cmibq.sqdiff.default, (a, b))


def test_compiled_equals_eager() -> None:
    a, b = operands()
    compiled = torch.compile(mean_square_error, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(a, b), mean_square_error(a, b))


def test_nothing_and_other_shapes() -> None:
    assert mean_square_error(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)
    with pytest.raises(ValueError, match="mean_square_error"):
        mean_square_error(torch.zeros(2, 3), torch.zeros(2, 4))
