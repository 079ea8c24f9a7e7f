from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cmibq.ops.linear import linear, training_precision


def operands(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = [(2, 40, 33), (17, 33), (17,)]
    return [torch.randn(s, generator=g, dtype=dtype).requires_grad_() for s in shapes]


def gradients(f: object, leaves: list[Tensor], **given: str) -> list[Tensor]:
    y = f(*leaves, **given)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, g)]


@pytest.mark.parametrize(
    ("precision", "most"),
    [("float32", 1e-6), ("bfloat16x3", 2e-6), ("bfloat16x2", 3e-5), ("bfloat16", 2e-2)],
)
def test_gradients(precision: str, most: float) -> None:
    leaves = operands()
    exact = gradients(functional.linear, [t.detach().double().requires_grad_() for t in leaves])
    for got, want in zip(gradients(linear, leaves, precision=precision), exact, strict=True):
        assert got.is_contiguous()
        assert got.shape == want.shape
        assert (got - want).norm() <= most * want.norm()


def test_training_is_as_precise_as_it_says() -> None:
    forward, backward = training_precision()
    leaves = operands()
    exact = gradients(functional.linear, [t.detach().double().requires_grad_() for t in leaves])
    got = gradients(linear, leaves, precision=forward, grad_precision=backward)
    assert (got[0] - exact[0]).norm() <= 1e-6 * exact[0].norm()
    for a, b in zip(got[1:], exact[1:], strict=True):
        assert (a - b).norm() <= 2e-5 * b.norm()


def test_other_dtypes_are_torchs() -> None:
    x, w, b = operands(torch.float64)
    assert torch.equal(linear(x, w, b), functional.linear(x, w, b))
    assert torch.autograd.gradcheck(linear, (x[:1, :3], w, b))


def test_autocast_and_compile() -> None:
    x, w, b = operands()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w, b).dtype is torch.bfloat16
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w, b), linear(x, w, b), rtol=1e-5, atol=1e-5)


def test_only_what_is_wanted_gets_a_gradient() -> None:
    x, w, b = operands()
    linear(x.detach(), w, b).sum().backward()
    assert x.grad is None
    assert w.grad is not None
    assert b.grad is not None


def test_refuses_shapes() -> None:
    with pytest.raises(ValueError, match="gemm"):
        linear(torch.ones(2, 3), torch.ones(4, 5))
