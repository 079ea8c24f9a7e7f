"""Every observer in the registry: its grids are grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmibq.errors import ConfigError
from cmibq.ops import codes, decode, fakequant
from cmibq.quant import OBSERVERS, PerChannel, QuantSpec, RangeMode
from tests.kernels.cases.base import finite

SPECS = [
    QuantSpec(bits, PerChannel(), symmetric=bool(mode & 1), mode=RangeMode(mode))
    for bits in (1, 2, 3, 4, 8)
    for mode in range(8)
    if bits > 1 or not mode & 1
]
sweep = pytest.mark.parametrize("name", sorted(OBSERVERS))


def matrix() -> torch.Tensor:
    return torch.from_numpy(finite(np.random.default_rng(11), 12, 48))


def test_the_sweep_sees_every_observer() -> None:
    assert set(OBSERVERS) >= {"minmax", "mse"}


@sweep
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_grid_membership_and_idempotence(name: str, spec: QuantSpec) -> None:
    x = matrix()
    q = OBSERVERS[name](spec).observe(x)
    assert (q.scale > 0).all()
    assert (q.lo() == q.lo().round()).all()
    once = fakequant(x, q.scale, q.lo(), q.hi())
    c = codes(x, q.scale, q.zero_point, bits=spec.bits)
    assert int(c.max()) < 2**spec.bits
    assert torch.equal(decode(c, q.scale, q.zero_point), once)
    assert torch.equal(fakequant(once, q.scale, q.lo(), q.hi()), once)
    assert not (once.signbit() & (once == 0)).any()


@sweep
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_modes_hold(name: str, spec: QuantSpec) -> None:
    q = OBSERVERS[name](spec).observe(matrix())
    if spec.range_mode & RangeMode.HALF_SCALE:
        assert torch.equal(q.scale, q.scale.half().float())
    if spec.symmetric:
        assert (q.zero_point == 2 ** (spec.bits - 1)).all()
    assert (q.zero_point.int() < 2**spec.bits).all()


@sweep
def test_rows_are_independent(name: str) -> None:
    x, spec = matrix(), QuantSpec(4, PerChannel())
    whole, part = OBSERVERS[name](spec).observe(x), OBSERVERS[name](spec).observe(x[4:6])
    assert torch.equal(whole.scale[4:6], part.scale)
    assert torch.equal(whole.zero_point[4:6], part.zero_point)


def test_mse_clips_an_outlier_and_minmax_does_not() -> None:
    x = torch.cat(
        [torch.randn(1, 255, generator=torch.Generator().manual_seed(0)), 8 * torch.ones(1, 1)], 1
    )
    spec = QuantSpec(3, PerChannel())
    errors = {}
    for name in ("minmax", "mse"):
        q = OBSERVERS[name](spec).observe(x)
        errors[name] = float((fakequant(x, q.scale, q.lo(), q.hi()) - x).square().sum())
    assert errors["mse"] < 0.8 * errors["minmax"]


def test_unknown_names_are_offered_near_ones() -> None:
    with pytest.raises(ConfigError, match="unknown observer 'msee'; did you mean 'mse'"):
        OBSERVERS["msee"]
