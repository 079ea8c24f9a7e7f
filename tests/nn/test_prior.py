from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from cmibq.errors import ConfigError
from cmibq.nn.prior import DiscretePrior
from cmibq.ops.channel_bits import offset


def some(channels: int = 3) -> DiscretePrior:
    prior = DiscretePrior(channels)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in prior.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draw))
    return prior


def test_every_width_sums_to_one() -> None:
    tables = some().tables().double()
    for b in range(9):
        total = (0.5 ** tables[:, 2**b - 1 : 2 ** (b + 1) - 1]).sum(1)
        np.testing.assert_allclose(total.detach(), 1, atol=1e-5)


def test_worked_by_hand() -> None:
    """One logistic in the middle with scale 1/2: the codes of two bits end at 1/6, 1/2, 5/6."""
    prior = DiscretePrior(1, mixtures=1)
    with torch.no_grad():
        prior.mean.fill_(0.5)
        prior.log_scale.fill_(np.log(0.5))
    ends = 1 / (1 + np.exp(-np.array([-2 / 3, 0, 2 / 3])))
    p = np.diff([0, *ends, 1])
    got = 0.5 ** prior.tables()[0, 3:7].detach().numpy()
    np.testing.assert_allclose(got, p * (1 - 4 / 65536) + 1 / 65536, rtol=1e-5)


def test_no_code_costs_more_than_the_integers_say() -> None:
    prior = DiscretePrior(2)
    with torch.no_grad():
        prior.log_scale.fill_(-9)
        prior.logits[:, 1::2] = -60
    tables = prior.tables()
    assert tables.max() <= 16
    assert torch.isfinite(tables).all()


def test_gradients() -> None:
    prior = some(2).double()
    mix = torch.randn(2, 511, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for bits in (None, torch.tensor([[2.5, 0.0]], dtype=torch.float64)):
        names = [n for n, _ in prior.named_parameters()]

        def cost(*values: torch.Tensor, bits=bits, names=names) -> torch.Tensor:
            made = torch.func.functional_call(prior, dict(zip(names, values, strict=True)), (bits,))
            return (made[:, :63] * mix[:, :63]).sum(1)

        prior.forward = prior.tables  # functional_call goes through forward
        assert torch.autograd.gradcheck(cost, tuple(prior.parameters()), fast_mode=True)


def test_only_what_is_in_use() -> None:
    prior = some().double()
    bits = torch.tensor([[2.5, 0.0, 8.0], [2.0, 6.9, 7.0]])
    few, all_ = prior.tables(bits), prior.tables()
    for c, widths in enumerate([{2, 3}, {0, 1, 6, 7}, {7, 8}]):
        for b in range(9):
            part = slice(2**b - 1, 2 ** (b + 1) - 1)
            want = all_[c, part] if b in widths else torch.zeros(2**b).double()
            torch.testing.assert_close(few[c, part], want, rtol=1e-9, atol=0)


def test_it_starts_where_the_data_are() -> None:
    """Close to the entropy of the codes before a single step."""
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(3)) * 0.06 + 0.3
    plain, begun = DiscretePrior(2), DiscretePrior(2)
    begun.start_(x, torch.zeros(2), torch.ones(2))
    codes = (x.clamp(0, 1) * 15).round().long()
    counts = torch.stack([torch.bincount(codes[:, c], minlength=16) for c in range(2)]).double()
    p = counts / counts.sum(1, keepdim=True)
    entropy = -(p * p.clamp(min=1e-30).log2()).sum()
    cost = [(p * q.tables()[:, 15:31]).sum() for q in (plain, begun)]
    assert cost[1] < entropy + 0.1
    assert cost[0] > entropy + 0.5
    before = begun.mean.clone()
    begun.start_(x * 0.5, torch.zeros(2), torch.ones(2))
    assert torch.equal(begun.mean, before)


def test_counts_are_taken_exactly() -> None:
    prior, counts = some(), torch.zeros(3, 511)
    at = int(offset(torch.tensor(2)))
    counts[:, at : at + 4] = torch.tensor([1000.0, 10, 0, 1])
    before = prior.tables()
    prior.fit_(counts)
    p = (np.array([1000.5, 10.5, 0.5, 1.5]) / 1013) * (1 - 4 / 65536) + 1 / 65536
    np.testing.assert_allclose(0.5 ** prior.tables()[1, at : at + 4].detach(), p, rtol=1e-4)
    assert not torch.equal(prior.tables(), before)
    with pytest.raises(ConfigError, match="counts has shape"):
        prior.fit_(counts[:, :100])


def test_gradients_of_float32_parameters_are_exact() -> None:
    """They are small differences of large terms, which two processes have to agree on."""
    prior, costs = some().float(), torch.rand(3, 511, generator=torch.Generator().manual_seed(2))
    wide = copy.deepcopy(prior).double()
    (prior.tables() * costs).sum().backward()
    (wide.tables() * costs.double()).sum().backward()
    for (name, p), q in zip(prior.named_parameters(), wide.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-6, atol=1e-9, msg=name)
