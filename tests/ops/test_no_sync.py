"""What a training step runs off the CPU never asks the device for a number.

There is no such device here: tensors of the device meta stand in, which have no values to give.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmibq.ops import alloc, channel_bits_reference, noise
from cmibq.ops.bottleneck import reference as draw
from cmibq.ops.bottleneck import reference_backward as draw_backward


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    # the table is brought to a device once, before the first step
    monkeypatch.setattr(noise, "_table", lambda d: torch.zeros(3, 496, device=d))
    return torch.device("meta")


def latents(device: torch.device, groups: int) -> tuple[Tensor, ...]:
    x, bits = (torch.ones(n, 6, device=device) for n in (12, groups))
    low, high = (torch.ones(6, device=device) for _ in range(2))
    return x, low, high, bits


def test_a_sync_would_be_found(device: torch.device) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        bool(torch.ones(3, device=device).any())
    with pytest.raises(RuntimeError, match="nonzero"):
        torch.ones(3, device=device).nonzero()


@pytest.mark.parametrize("groups", [1, 3])
def test_channel_bits(device: torch.device, groups: int) -> None:
    x, low, high, bits = latents(device, groups)
    tables, rows = torch.ones(6, 511, device=device), torch.ones(12, device=device)
    key = noise.noise_key(1, 2, device=device)
    operands = (x, low, high, bits, tables, key, 3)
    assert channel_bits_reference.reference(*operands)[0].is_meta
    made = channel_bits_reference.reference_backward(x, rows, *operands)
    assert [m.shape for m in made] == [t.shape for t in operands[:5]]


def test_bottleneck(device: torch.device) -> None:
    x, low, high, bits = latents(device, 3)
    key = noise.noise_key(1, torch.tensor(2, device=device), device=device)
    operands = (x, x, low, high, bits, key, 3)
    y, kl = draw(*operands)
    made = draw_backward(y, kl, *operands)
    assert [m.shape for m in made] == [t.shape for t in operands[:5]]


def test_projection(device: torch.device) -> None:
    x, weight, *_ = latents(device, 1)
    bits = alloc.reference_project(x, weight, 4.0, 2.0, 8.0)
    assert alloc.reference_project_backward(x, bits, weight, 2.0, 8.0).shape == x.shape


def test_projection_without_a_branch_is_the_same() -> None:
    class Elsewhere(Tensor):
        """Says that it is not on the CPU."""

        @property
        def is_cpu(self) -> bool:  # type: ignore[override]
            return False

    near = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    far = near * 2.0**30
    for x in (near, far):
        want = alloc.reference_project(x, None, 4.0, 2.0, 8.0)
        got = alloc.reference_project(x.as_subclass(Elsewhere), None, 4.0, 2.0, 8.0)
        assert torch.equal(got.as_subclass(Tensor), want)
