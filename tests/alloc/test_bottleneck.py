"""Bits of channels: whole ones against brute force, networks, importance, few maps for many."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from cmibq.alloc.bottleneck import ALLOCATION_NETWORKS, IMPORTANCE, BitAllocationNetwork
from cmibq.alloc.importance import (
    FisherImportance,
    RolloutImportance,
    VarianceImportance,
    attention_rollout,
)
from cmibq.alloc.medoids import choose_maps, nearest_map
from cmibq.alloc.policies import VarianceAllocation
from cmibq.alloc.reinforce import Baseline, ReinforceAllocation
from cmibq.alloc.whole import budget, expected_distortion, whole_bits
from cmibq.errors import ConfigError, DataError, ModelError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spent(bits: Sequence[int], costs: Sequence[int]) -> int:
    return sum(b * c for b, c in zip(bits, costs, strict=True))


def least(wishes: list[float], lo: int, hi: int, total: int, costs: tuple[int, ...]) -> float:
    """Return the least distortion of all allocations, by trying every one."""
    return min(
        sum(4.0 ** (w - b) for w, b in zip(wishes, bits, strict=True))
        for bits in itertools.product(range(lo, hi + 1), repeat=len(wishes))
        if (sum(bits) == total if not costs else spent(bits, costs) <= total)
    )


@pytest.mark.parametrize("costs", [(), (1, 3, 2, 1)], ids=["plain", "costs"])
@pytest.mark.parametrize("lo", [0, 2])
def test_whole_bits_are_the_optimum(lo: int, costs: tuple[int, ...]) -> None:
    wishes = normal(3, 4, seed=lo) * 2
    weight = sum(costs) or 4
    for total in (lo * weight, lo * weight + 5, 4 * weight - 1, 5 * weight):
        bits = whole_bits(wishes, lo, 5, total, costs=costs)
        for row, b in zip(wishes.double().tolist(), bits.tolist(), strict=True):
            found = sum(4.0 ** (w - k) for w, k in zip(row, b, strict=True))
            assert found <= least(row, lo, 5, total, costs) * (1 + 1e-6)
            assert spent(b, costs) <= total if costs else sum(b) == total


def test_whole_bits_by_hand() -> None:
    """Gains of the next bit are 4^(wish - bits): 2, 1, 1, 0, 0, 0 ... in powers."""
    assert whole_bits(torch.tensor([[2.0, 1.0, 0.0]]), 0, 8, 4).tolist() == [[3, 1, 0]]
    assert whole_bits(torch.tensor([[2.0, 1.0, 0.0]]), 0, 8, 3).tolist() == [[2, 1, 0]]
    assert whole_bits(torch.tensor([[0.0, 0.0, 0.0]]), 1, 8, 5).tolist() == [[2, 2, 1]]


def test_whole_bits_of_channels_far_apart_meet_the_budget() -> None:
    """4^(wish - bits) underflows in float32 for most channels; nothing is left unspent."""
    wishes = torch.linspace(-300, 300, 1000)[None]
    for target in (2.0, 2.3, 4.0, 7.999):
        total = budget(target, 1000)
        bits = whole_bits(wishes, 2, 8, total)[0]
        assert int(bits.sum()) == total
        assert (bits.int().diff() >= 0).all()
    with pytest.raises(ConfigError, match=r"total is 7; 4 channels of 2\.\.8 bits allow 8\.\.32"):
        whole_bits(torch.zeros(1, 4), 2, 8, 7)


def test_budgets_are_not_lost_to_rounding() -> None:
    assert [budget(t / 10, 10) for t in range(20, 81)] == list(range(20, 81))


@pytest.mark.parametrize("name", sorted(ALLOCATION_NETWORKS))
def test_every_allocator(name: str) -> None:
    """Budgets to 1e-5, in range, weighted by costs; soft: in range, pulled by its level."""
    torch.manual_seed(0)
    importance = normal(3, 33).exp()
    noise = normal(3, 33, seed=1)
    costs = tuple(range(1, 34))
    for target in (2.0, 2.7, 8.0):
        made = ALLOCATION_NETWORKS[name](33, 8, 2, 8, costs=costs)
        bits = made(importance, target, noise).detach().double()
        w = torch.tensor(costs).double()
        assert ((bits * w).sum(1) / w.sum() - target).abs().max() < 1e-5
        assert bits.min() >= 2
        assert bits.max() <= 8
    soft = ALLOCATION_NETWORKS[name](33, 8, 2, 8, soft=True)
    assert soft.level is not None
    bits = soft(importance, 3.0, noise)
    assert bits.min() > 2
    assert bits.max() < 8
    bits.mean().backward()
    assert soft.level.grad is not None
    assert float(soft.level.grad) > 0.1
    with pytest.raises(ConfigError, match="costs has 2 entries"):
        ALLOCATION_NETWORKS[name](33, 8, 2, 8, costs=(1, 1))


def test_the_network_starts_as_reverse_water_filling() -> None:
    importance = torch.tensor([[1.0, 4.0, 16.0, 64.0]])
    expected = torch.tensor([[2.5, 3.5, 4.5, 5.5]])
    for made in (BitAllocationNetwork(4, 8, 0, 8), VarianceAllocation(4, 8, 0, 8)):
        assert torch.allclose(made(importance, 4.0), expected)


@pytest.mark.parametrize("name", sorted(IMPORTANCE))
def test_every_importance(name: str) -> None:
    made = IMPORTANCE[name](6, 4, 8, 5)
    x, task = normal(3, 7, 6), normal(3, 4)
    for t in (x, x.double()):
        told = made.double()(t, task.to(t.dtype)) if t.dtype is torch.float64 else made(t, task)
        assert told.shape in ((1, 5), (3, 5))
        assert (told > 0).all()
        assert told.dtype == t.dtype


def test_running_variance() -> None:
    made = VarianceImportance(0, 0, 0, 3)
    x = normal(4, 50, 3) * torch.tensor([1.0, 3.0, 0.0]) + 2
    made.observe(x)
    want = x.flatten(0, 1).var(0, correction=0)
    assert torch.allclose(made(x, None)[0, :2], want[:2], rtol=1e-4)
    before = made(x, None)
    made.observe(x * torch.nan)
    made.observe(x[:0])
    assert torch.equal(made(x, None), before), "NaN and nothing change nothing"
    for _ in range(200):
        made.observe(x * 2)
    assert torch.allclose(made(x, None)[0, :2], 4 * want[:2], rtol=1e-3)


def test_fisher_takes_in_the_last_gradient() -> None:
    made = FisherImportance(0, 0, 0, 2)
    g = torch.tensor([[[1e-9, 2e-9], [3e-9, 4e-9]]])
    x = torch.zeros(1, 2, 2)
    made.observe_gradient(g)
    assert torch.equal(made(x, None), torch.ones(1, 2)), "not yet"
    made.observe(x)
    assert torch.allclose(made(x, None), torch.tensor([[10.0, 20.0]]) / 15)
    made.observe(x)
    assert torch.allclose(made(x, None), torch.tensor([[10.0, 20.0]]) / 15), "once"


def test_rollout() -> None:
    """Two layers by hand: (A2 + I)/2 (A1 + I)/2, averaged over who asks."""
    a1 = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    a2 = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert torch.allclose(attention_rollout([a1, a2]), torch.tensor([[0.625, 0.375]]))
    made = RolloutImportance(0, 0, 0, 1)
    made.observe(torch.tensor([[[0.0], [5.0], [1.0]]]), torch.tensor([[0.5, 0.0, 0.5]]))
    assert float(made(torch.zeros(1, 1, 1), None)) == pytest.approx(0.25)
    with pytest.raises(DataError, match="attention has shape"):
        made.observe(torch.zeros(1, 3, 1), torch.ones(1, 2))
    with pytest.raises(DataError, match="empty"):
        attention_rollout([])


def test_reinforce_gives_the_gradient_of_the_expected_cost() -> None:
    """Cost = bits of channel 0: its expectation falls with the wish of the others."""
    torch.manual_seed(0)
    made = ReinforceAllocation(3, 4, 0, 8)
    importance, baseline = torch.ones(1, 3), Baseline()
    last = made.network[2].bias
    total = torch.zeros(3)
    for seed in range(1500):
        bits = made(importance, 4.0, normal(1, 3, seed=seed))
        assert made.log_policy is not None
        (g,) = torch.autograd.grad(baseline.loss(bits[:, 0], made.log_policy), [last])
        total += g / 1500
    want = torch.tensor([2 / 3, -1 / 3, -1 / 3])  # the Jacobian of the projection
    assert torch.allclose(total, want, atol=0.09)  # 4 standard errors
    with pytest.raises(ModelError, match="noise"):
        made(importance, 4.0)


def test_the_nearest_map_has_the_least_distortion() -> None:
    wishes, maps = normal(5, 7) * 3, torch.randint(0, 9, (6, 7), dtype=torch.uint8)
    table = (4.0 ** (wishes.double()[:, None] - maps.double())).sum(2)
    assert torch.equal(nearest_map(wishes, maps), table.argmin(1))
    ratio = expected_distortion(wishes, maps) / table
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio)), "up to a factor per row"


def test_few_maps_for_many_samples() -> None:
    """Two groups of samples and two maps: one of each; the order of samples does not matter."""
    centre = torch.tensor([[3.0, 0.0, 0.0, 1.0], [0.0, 3.0, 1.0, 0.0]])
    wishes = centre.repeat(20, 1) + 0.4 * normal(40, 4)
    own = whole_bits(wishes, 0, 8, 8)
    assert len(own.unique(dim=0)) > 2
    kept = own[choose_maps(wishes, own, 2)]
    assert len(kept) == 2
    group = nearest_map(wishes, kept).view(20, 2)
    assert (group == group[0]).all()
    assert group[0, 0] != group[0, 1]
    turned = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    again = own[turned][choose_maps(wishes[turned], own[turned], 2)]
    assert torch.equal(again.unique(dim=0), kept.unique(dim=0))
    everything = own[choose_maps(wishes, own, 256)]
    assert torch.equal(everything.unique(dim=0), own.unique(dim=0))
    counts = [(own == m).all(1).sum().item() for m in everything]
    assert counts == sorted(counts, reverse=True)
