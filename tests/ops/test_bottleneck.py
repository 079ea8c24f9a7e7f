from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cmibq.errors import ConfigError
from cmibq.ops import bottleneck, channel_bits, noise_key, normal
from cmibq.ops.bottleneck import reference, reference_backward

KEY = noise_key(5, 9, 3, 1)


def operands(groups: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(8)
    mu, logvar = (torch.randn(12, 70, generator=g, dtype=dtype) for _ in range(2))
    low = -torch.rand(70, generator=g, dtype=dtype) - 0.5
    high = torch.rand(70, generator=g, dtype=dtype) + 0.5
    bits = torch.rand(groups, 70, generator=g, dtype=dtype) * 8
    return [t.requires_grad_() for t in (mu, logvar, low, high, bits)]


def outer(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(9)
    return [torch.randn(s, generator=g).to(dtype) for s in ((12, 70), (12,))]


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_gradients_are_those_of_the_parts(groups: int) -> None:
    leaves = operands(groups, torch.float64)
    mu, logvar, low, high, bits = leaves
    z = mu + torch.exp(0.5 * logvar) * normal((3, 4 * 70), KEY).view(12, 70)
    y, _ = channel_bits(z, low, high, bits)
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)
    got = bottleneck(*leaves, key=KEY, samples=3)
    for a, b in zip(got, (y, kl), strict=True):
        torch.testing.assert_close(a, b)
    want = torch.autograd.grad([y, kl], leaves, outer(torch.float64))
    for a, b in zip(torch.autograd.grad(got, leaves, outer(torch.float64)), want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_kernel_equals_reference(groups: int) -> None:
    leaves = operands(groups)
    got = bottleneck(*leaves, key=KEY, samples=3)
    plain = [t.detach() for t in leaves]
    want = reference(*plain, KEY, 3)
    steps = (plain[3] - plain[2]) / (2 ** plain[4].floor().clamp(max=7) - 1).clamp(min=1)
    off = (got[0] - want[0]).abs() > 1e-6 * (1 + want[0].abs())
    # An ulp of the exponential may round another way where the latent lies between two levels.
    assert off.float().mean() < 1e-3
    assert ((got[0] - want[0]).abs() <= 1.01 * steps.repeat_interleave(12 // groups, 0)).all()
    torch.testing.assert_close(got[1], want[1])
    if off.any():
        return
    for a, b in zip(
        torch.autograd.grad(got, leaves, outer()),
        reference_backward(*outer(), *plain, KEY, 3),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def test_hand_worked() -> None:
    mu = torch.tensor([[1.0, 0.0]])
    logvar = torch.tensor([[0.0, math.log(4.0)]])
    wide = torch.full((2,), 100.0)
    bits = torch.full((1, 2), 8.0)
    y, kl = bottleneck(mu, logvar, -wide, wide, bits, key=KEY, samples=1)
    # (1 + 1 - 1 - 0) / 2 and (0 + 4 - 1 - log 4) / 2
    torch.testing.assert_close(kl, torch.tensor([0.5 + (3 - math.log(4.0)) / 2]))
    z = mu + torch.tensor([[1.0, 2.0]]) * normal((1, 2), KEY)
    assert ((y - z).abs() <= 100 / 255).all()


def test_halves_of_a_batch() -> None:
    mu, logvar, low, high, bits = (t.detach() for t in operands())
    whole, _ = bottleneck(mu, logvar, low, high, bits, key=noise_key(1, 2), samples=4)
    for first in (0, 2):
        rows = slice(3 * first, 3 * first + 6)
        key = noise_key(1, 2, first)
        half, _ = bottleneck(mu[rows], logvar[rows], low, high, bits, key=key, samples=2)
        assert torch.equal(half, whole[rows])


def test_keeps_its_operands_alone() -> None:
    leaves, saved = operands(), []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        bottleneck(*leaves, key=KEY, samples=3)
    assert sorted(saved) == sorted(t.data_ptr() for t in (*leaves, KEY))


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.cmibq.bottleneck.default, (*operands(3), KEY, 3))


def test_refuses() -> None:
    leaves = operands()
    with pytest.raises(ConfigError, match="samples"):
        bottleneck(*leaves, key=KEY, samples=5)
    with pytest.raises(ConfigError, match="logvar"):
        bottleneck(leaves[0], leaves[1][:, :3], *leaves[2:], key=KEY, samples=3)
    with pytest.raises(ValueError, match="bits"):
        bottleneck(*leaves[:4], leaves[4] + 9, key=KEY, samples=3)
