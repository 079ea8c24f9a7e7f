from __future__ import annotations

import pytest
import torch

from cmibq.ops.fakequant import fakequant, reference, reference_backward


def operands(axis: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 9, generator=g, dtype=dtype)
    n = x.shape[axis]
    scale = torch.rand(n, generator=g, dtype=dtype) * 0.3 + 0.05
    lo = torch.full((n,), -4.0, dtype=dtype)
    hi = torch.arange(n, dtype=dtype) + 1  # levels, so bits, vary per channel
    return [x.requires_grad_(), scale.requires_grad_(), lo, hi]


@pytest.mark.parametrize("axis", [0, 1])
def test_kernel_equals_reference(axis: int) -> None:
    args = operands(axis)
    assert torch.equal(fakequant(*args, axis=axis), reference(*args, axis))


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_equal_reference(axis: int) -> None:
    args = operands(axis)
    g = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(fakequant(*args, axis=axis), args[:2], g)
    want = reference_backward(g, *(a.detach() for a in args), axis)
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1], want[1])


@pytest.mark.parametrize("axis", [0, 1])
def test_surrogate_gradient(axis: int) -> None:
    """The op's backward is the true gradient of the surrogate with the rounding error frozen."""
    x, scale, lo, hi = operands(axis, torch.float64)
    s, low, high = (p.unsqueeze(1 - axis) for p in (scale, lo, hi))
    frozen = (torch.round(torch.clamp(x / s, low, high)) - torch.clamp(x / s, low, high)).detach()

    def surrogate(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        s = scale.unsqueeze(1 - axis)
        return (torch.clamp(x / s, low, high) + frozen) * s

    assert torch.autograd.gradcheck(surrogate, (x, scale))
    g = torch.randn_like(x)
    want = torch.autograd.grad(surrogate(x, scale), (x, scale), g)
    got = torch.autograd.grad(fakequant(x, scale, lo, hi, axis=axis), (x, scale), g)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("axis", [0, 1])
def test_opcheck(axis: int) -> None:
    torch.library.opcheck(torch.ops.cmibq.fakequant.default, (*operands(axis), axis))


def test_compiled_equals_eager() -> None:
    args = operands(0)
    compiled = torch.compile(lambda *a: fakequant(*a), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), fakequant(*args))
    compiled(*args).sum().backward()
    assert args[1].grad is not None
