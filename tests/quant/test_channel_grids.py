"""Quantisers of channels: where levels lie, codes, rounding at random, running ranges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from cmibq.ops import noise_key
from cmibq.quant.quantizers.channel_bits import DifferentiableQuantizer
from cmibq.quant.quantizers.channel_grids import CHANNEL_GRIDS, between_grids

grids = pytest.mark.parametrize("name", sorted(CHANNEL_GRIDS))


def made(name: str, channels: int = 1) -> DifferentiableQuantizer:
    quantizer = DifferentiableQuantizer(channels, grid=name)
    quantizer.running_min.fill_(-1)
    quantizer.running_max.fill_(1)
    return quantizer.eval()


def levels(name: str, bits: int) -> list[float]:
    x = torch.linspace(-1.2, 1.2, 200001)[:, None]
    y = made(name)(x, torch.full((1, 1), float(bits)))[0]
    return y.detach().unique().tolist()


def test_levels_by_hand() -> None:
    assert levels("affine", 2) == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert levels("pow2", 3) == [-1, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 1]
    inner = (256 ** (1 / 3) - 1) / 255  # a third of the way of the mu-law
    assert levels("log", 2) == pytest.approx([-1, -inner, inner, 1], rel=1e-5)


@grids
def test_zero_bits_are_the_centre_and_one_is_both_ends(name: str) -> None:
    assert levels(name, 0) == [0.0]
    assert levels(name, 1) == pytest.approx([-1, 1], rel=1e-6)


@grids
@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_codes_rise_with_the_levels_and_rounding_twice_is_rounding_once(
    name: str, bits: int
) -> None:
    """The rate of a code tells the code: tables here say 511 c + code."""
    x = torch.linspace(-1.1, 1.1, 501)[:, None]
    tables, b = torch.arange(511.0)[None], torch.full((1, 1), float(bits))
    y, rate = made(name)(x, b, tables)
    codes = (rate - (2**bits - 1)).round().long()
    assert int(codes.min()) == 0
    assert int(codes.max()) == 2**bits - 1
    assert (codes.diff() >= 0).all()
    assert ((y[:, 0].diff() > 0) == (codes.diff() > 0)).all()
    again = made(name)(y.detach(), b, tables)
    assert torch.allclose(again[0], y, rtol=1e-5, atol=1e-6)
    assert torch.equal((again[1] - (2**bits - 1)).round().long(), codes)


@grids
def test_widths_between_interpolate(name: str) -> None:
    x = torch.linspace(-1, 1, 11)[:, None].repeat(1, 2)
    low, high = torch.full((2,), -1.0), torch.ones(2)
    grid, tables = CHANNEL_GRIDS[name], torch.rand(2, 511)
    ends = [between_grids(grid, x, low, high, torch.full((1, 2), b), tables) for b in (3.0, 4.0)]
    middle = between_grids(grid, x, low, high, torch.full((1, 2), 3.25), tables)
    for a, b, m in zip(*ends, middle, strict=True):
        assert torch.allclose(m, 0.75 * a + 0.25 * b, atol=1e-5)


def test_the_affine_grid_is_the_operator() -> None:
    torch.manual_seed(0)
    x, bits, tables = torch.randn(40, 6), torch.rand(2, 6) * 8, torch.rand(6, 511)
    a, b = (t.requires_grad_() for t in (bits, bits.clone().detach()))
    quantizer = DifferentiableQuantizer(6).eval()
    low, high = quantizer.ends()
    one = quantizer(x, a, tables)
    two = between_grids(CHANNEL_GRIDS["affine"], x, low, high, b, tables)
    for p, q in zip(one, two, strict=True):
        assert torch.allclose(p, q, atol=1e-5)
    (one[0].square().sum() + one[1].sum()).backward()
    (two[0].square().sum() + two[1].sum()).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert torch.allclose(a.grad, b.grad, atol=1e-3, rtol=1e-4)


@grids
def test_the_gradient_to_the_bits_equals_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    x, low, high = torch.randn(6, 3).double(), torch.full((3,), -2.0).double(), torch.ones(3) * 2
    tables, grid = torch.rand(3, 511).double(), CHANNEL_GRIDS[name]
    bits = (torch.rand(2, 3).double() * 0.8 + torch.tensor([[1.1], [4.1]])).requires_grad_()

    def both(b: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return between_grids(grid, x, low, high.double(), b, t)

    assert torch.autograd.gradcheck(both, (bits, tables.requires_grad_()))


@grids
def test_gradients_pass_straight_through_inside_only(name: str) -> None:
    x = torch.tensor([[0.3], [-0.6], [1.5], [-2.0]], requires_grad=True)
    made(name)(x, torch.full((1, 1), 4.0))[0].sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].tolist() == pytest.approx([1, 1, 0, 0])


@pytest.mark.parametrize("name", ["affine", "log"])
def test_rounding_at_random_is_right_in_the_mean(name: str) -> None:
    """20000 draws: the standard error is below step / 280; in the mu-law for log."""
    x = torch.full((20000, 1), 0.4)
    quantizer = made(name)
    y = quantizer(x, torch.full((1, 1), 3.0), key=noise_key(1, 2), samples=20000)[0].detach()
    values = y.unique()
    assert len(values) == 2
    if name == "affine":
        assert float(y.mean()) == pytest.approx(0.4, abs=4 * (2 / 7) / 280)
    again = quantizer(x, torch.full((1, 1), 3.0), key=noise_key(1, 2), samples=20000)[0]
    assert torch.equal(again, y), "keyed"


def test_running_ranges() -> None:
    quantizer = DifferentiableQuantizer(2, momentum=0.1)
    quantizer.observe(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert quantizer.running_min.tolist() == [1, 5]
    assert quantizer.running_max.tolist() == [3, 5]
    quantizer.observe(torch.tensor([[-1.0, 5.0], [4.0, torch.nan]]))
    assert quantizer.running_min.tolist() == pytest.approx([0.8, 5])
    assert quantizer.running_max.tolist() == pytest.approx([3.1, 5])
    low, high = quantizer.ends()
    assert float((high - low)[1].detach()) == pytest.approx(2e-6, rel=0.5), "no variance"
    quantizer.observe(torch.zeros(0, 2))
    assert int(quantizer.seen) == 2
    again = DifferentiableQuantizer(2)
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again.ends()[0], low)


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    quantizer = DifferentiableQuantizer(2)
    x = torch.tensor([[0.0, 1.0], [2.0, 4.0]]) if rank else torch.zeros(0, 2)
    quantizer.observe(x)
    quantizer.observe(torch.tensor([[float(rank), -1.0]]))
    torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_all_processes_have_the_same_ranges(tmp_path: Any) -> None:
    """Also where one of them has an empty batch."""
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert one["running_min"].tolist() == pytest.approx([0, 0.9])
    assert one["running_max"].tolist() == pytest.approx([1.95, 3.75])
