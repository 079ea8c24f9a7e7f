"""Powers of two, power-of-two steps and torch's arithmetic: formulas, torch, gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cmibq import arrays, ops
from cmibq.errors import ConfigError
from cmibq.ops.grids import reference_compat, reference_log2
from tests.kernels.cases.base import nasty

Op = Callable[..., torch.Tensor]
OPS = {"log2": ops.fakequant_log2, "compat": ops.fakequant_torch_compat}
REFERENCES = {"log2": reference_log2, "compat": reference_compat}


def operands(kind: str, axis: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 9, generator=g, dtype=dtype) * 2
    n = x.shape[axis]
    scale = torch.rand(n, generator=g, dtype=dtype) + 0.5
    lo = torch.full((n,), -4.0, dtype=dtype)
    hi = torch.zeros(n, dtype=dtype) if kind == "log2" else torch.arange(n, dtype=dtype) + 1
    return [x.requires_grad_(), scale.requires_grad_(), lo, hi]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", OPS)
def test_kernel_arrays_and_reference_agree(kind: str, axis: int, rng: np.random.Generator) -> None:
    _, scale, lo, hi = (a.detach() for a in operands(kind, axis))
    x = torch.from_numpy(nasty(rng, 6, 9))
    got = OPS[kind](x, scale, lo, hi, axis=axis)
    want = REFERENCES[kind](x, scale, lo, hi, axis)
    assert torch.equal(got.nan_to_num(55), want.nan_to_num(55))
    name = {"log2": "fakequant_log2", "compat": "fakequant_torch_compat"}[kind]
    arguments = [a.numpy() for a in (x, scale, lo, hi)]
    np.testing.assert_array_equal(getattr(arrays, name)(*arguments, axis=axis), got.numpy())
    out = torch.empty_like(x)
    assert OPS[kind](x, scale, lo, hi, axis=axis, out=out) is out
    assert torch.equal(out.nan_to_num(55), want.nan_to_num(55))


@pytest.mark.parametrize("kind", OPS)
def test_opcheck_and_compile(kind: str) -> None:
    args = operands(kind, 0)
    torch.library.opcheck(getattr(torch.ops.cmibq, f"fakequant_{kind}").default, (*args, 0))
    compiled = torch.compile(lambda *a: OPS[kind](*a), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), OPS[kind](*args))


def surrogate(kind: str, axis: int, args: list[torch.Tensor]) -> Op:
    """Return the op with its rounding error frozen: what the backward differentiates."""
    x, scale, lo, hi = (a.detach() for a in args)
    s, low, high = (p.unsqueeze(1 - axis) for p in (scale, lo, hi))
    v, q = x / s, OPS[kind](x, scale, lo, hi, axis=axis) / s
    if kind == "log2":
        inside = v.abs() < 2.0 ** (high + 0.5)
    else:
        inside = (v >= low) & (v <= high)

    def function(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        s = scale.unsqueeze(1 - axis)
        return torch.where(inside, x / s + (q - v), q) * s

    return function


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", OPS)
def test_gradient(kind: str, axis: int) -> None:
    args = operands(kind, axis, torch.float64)
    function = surrogate(kind, axis, args)
    assert torch.autograd.gradcheck(function, args[:2])
    g = torch.randn_like(args[0])
    want = torch.autograd.grad(function(*args[:2]), args[:2], g)
    got = torch.autograd.grad(OPS[kind](*args, axis=axis), args[:2], g)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_compat_has_the_bits_of_torch(bits: int, rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.normal(size=(64, 999)).astype(np.float32))
    scale = torch.from_numpy(rng.uniform(0.01, 0.2, 64).astype(np.float32))
    x[:, :500] = scale[:, None] * (torch.randint(-9, 9, (64, 500)) + 0.5)  # ties, or nearly
    zero = torch.from_numpy(rng.integers(0, 2**bits, 64).astype(np.int32))
    want = torch.fake_quantize_per_channel_affine(x, scale, zero, 0, 0, 2**bits - 1)
    lo = -zero.to(torch.float32)
    got = ops.fakequant_torch_compat(x, scale, lo, lo + (2**bits - 1))
    assert torch.equal(got, want + 0.0)


def test_every_exponent_and_its_neighbours_by_hand() -> None:
    root = np.float32(2) ** np.float32(0.5)  # rounded down: the last float below sqrt(2)
    powers = np.float32(2) ** np.arange(-20, 21, dtype=np.float32)
    below, above = powers * root, powers * np.nextafter(root, np.float32(2))
    one = np.ones(1, np.float32)
    for x, want in ((powers, powers), (below, powers), (above, 2 * powers)):
        got = arrays.fakequant_log2(x[None], one, -30 * one, 30 * one)
        np.testing.assert_array_equal(got[0], want)
        np.testing.assert_array_equal(arrays.power_of_two(x), want)
        assert torch.equal(ops.power_of_two(torch.from_numpy(x)), torch.from_numpy(want))


def test_steps_that_are_powers_of_two(rng: np.random.Generator) -> None:
    scale = np.float32(2) ** rng.uniform(-30, 30, 999).astype(np.float32)
    for up in (False, True):
        power = arrays.power_of_two(scale, up=up)
        np.testing.assert_array_equal(np.frexp(power)[0], 0.5)
        ratio = power / scale
        assert (ratio >= (1 if up else 0.70710)).all()
        assert (ratio < (2 if up else 1.41422)).all()
        t = ops.power_of_two(torch.from_numpy(scale), up=up)
        np.testing.assert_array_equal(t.numpy(), power)
    np.testing.assert_array_equal(arrays.power_of_two(power, up=True), power)
    x = rng.normal(size=(999, 40)).astype(np.float32) * power[:, None]
    lo, hi = np.full(999, -8, np.float32), np.full(999, 7, np.float32)
    exact = np.rint(np.clip(np.ldexp(x, -np.log2(power).astype(int)[:, None]), -8, 7))
    want = exact * power[:, None]
    np.testing.assert_array_equal(arrays.fakequant(x, power, lo, hi), want)
    np.testing.assert_array_equal(arrays.fakequant_torch_compat(x, power, lo, hi), want)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, 3e38])
def test_step_sizes_without_a_power_are_refused(bad: float) -> None:
    scale = np.array([[1.0, 2.0], [bad, 4.0]], np.float32)
    for up in (False, True):
        with pytest.raises(ValueError, match=r"scale\[2\] is .*at most 2\*\*127"):
            arrays.power_of_two(scale, up=up)
        with pytest.raises(ValueError, match=r"scale\[2\] is "):
            ops.power_of_two(torch.from_numpy(scale), up=up)
    assert arrays.power_of_two(np.float32([2.0**127]), up=True)[0] == 2.0**127


@pytest.mark.parametrize(("lo", "hi", "bad"), [(-127, 0, -127), (0, 128, 128), (0.5, 1, 0.5)])
def test_exponents_of_no_float_are_refused(lo: float, hi: float, bad: float) -> None:
    one = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=rf"lo/hi\[0\] is {bad}; "):
        arrays.fakequant_log2(one[None], one, np.float32([lo]), np.float32([hi]))


def test_a_result_place_and_a_gradient_exclude_each_other() -> None:
    args = operands("log2", 0)
    with pytest.raises(ConfigError, match="out is given where a gradient is recorded"):
        ops.fakequant_log2(*args, out=torch.empty(6, 9))
