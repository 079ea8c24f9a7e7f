from __future__ import annotations

import pytest
import torch

from cmibq.errors import ConfigError
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


@pytest.mark.parametrize("axis", [0, 1])
def test_with_and_without_the_dispatcher(axis: int) -> None:
    """Eager calls leave the dispatcher out; the registered operator must do the very same."""
    args = operands(axis)
    g = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    short = fakequant(*args, axis=axis)
    long = torch.ops.cmibq.fakequant(*args, axis)
    assert torch.equal(short, long)
    for a, b in zip(*(torch.autograd.grad(y, args[:2], g) for y in (short, long)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("axis", [0, 1])
def test_results_go_where_the_caller_says(axis: int, dtype: torch.dtype) -> None:
    x, *rest = (a.detach() for a in operands(axis, dtype))
    want = reference(x, *rest, axis)
    out = torch.empty_like(x)
    assert fakequant(x, *rest, axis=axis, out=out) is out
    assert torch.equal(out, want)
    assert fakequant(x, *rest, axis=axis, out=x) is x
    assert torch.equal(x, want)


def test_a_result_place_and_a_gradient_exclude_each_other() -> None:
    args = operands(0)
    with pytest.raises(ConfigError, match="out is given where a gradient is recorded"):
        fakequant(*args, out=torch.empty(6, 9))
    with torch.no_grad():
        fakequant(*args, out=torch.empty(6, 9))


def test_a_second_derivative_is_refused() -> None:
    args = operands(0)
    weighted = (fakequant(*args) * torch.ones(6, 9, requires_grad=True)).sum()
    (gx,) = torch.autograd.grad(weighted, args[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gx.sum().backward()


def test_a_second_derivative_through_the_dispatcher_is_refused() -> None:
    """As compiled and traced code takes it; torch alone would warn and leave it out."""
    args = operands(0)
    wishes = torch.linspace(0, 9, 12).reshape(2, 6).requires_grad_()
    made = [
        (torch.ops.cmibq.fakequant(*args, 0), args[0], "fakequant"),
        (torch.ops.cmibq.project_bits(wishes, None, 4.0, 2.0, 8.0), wishes, "project_bits"),
    ]
    for y, x, name in made:
        (gx,) = torch.autograd.grad(y.square().sum(), [x], create_graph=True)
        with pytest.raises(RuntimeError, match=f"{name}: there is no gradient of its gradient"):
            gx.sum().backward()


def test_an_expanded_gradient_and_parts_without_gradient() -> None:
    x, scale, lo, hi = operands(0)
    fakequant(x.detach(), scale, lo, hi).sum().backward()
    assert scale.grad is not None
    fakequant(x, scale.detach(), lo, hi).sum().backward()
    assert x.grad is not None
    assert set(x.grad.unique().tolist()) <= {0.0, 1.0}


def test_the_profiler_sees_the_operator() -> None:
    args = operands(0)
    with torch.profiler.profile() as profile:
        fakequant(*args)
    assert "cmibq::fakequant" in {event.key for event in profile.key_averages()}


def test_transforms_and_fakes_go_through_the_dispatcher() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = fakequant(*(mode.from_tensor(a.detach()) for a in operands(0)))
        assert fake.shape == (6, 9)
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda *a: fakequant(*a))
    graph = traced(*(a.detach() for a in operands(0)))
    assert any("cmibq.fakequant" in str(node.target) for node in graph.graph.nodes)
