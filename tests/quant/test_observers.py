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
    assert set(OBSERVERS) >= {"minmax", "mse", "percentile", "kl", "histogram"}


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


def test_percentiles_are_ranks_and_histograms_nearly() -> None:
    x = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(8, PerChannel(), mode=RangeMode(0))
    exact = OBSERVERS["percentile"](spec, keep=99.0).observe(x).scale * 255
    ends = np.percentile(x.double().numpy(), [1, 99], axis=1)
    assert torch.allclose(exact, torch.tensor(ends[1] - ends[0]).float(), rtol=1e-6)
    counted = OBSERVERS["histogram"](spec, keep=99.0).observe(x).scale * 255
    assert torch.allclose(exact, counted, rtol=2e-2)  # ranks lie up to 0.02 apart in the tails


def test_kl_clips_heavy_tails() -> None:
    x = torch.from_numpy(np.random.default_rng(3).standard_t(2, (2, 20000)).astype(np.float32))
    spec = QuantSpec(4, PerChannel(), symmetric=True)
    narrow, wide = (OBSERVERS[n](spec).observe(x).scale for n in ("kl", "minmax"))
    assert (narrow < 0.5 * wide).all()


@pytest.mark.parametrize("name", ["percentile", "kl", "histogram"])
def test_nan_and_infinity_are_refused(name: str) -> None:
    for bad in (float("nan"), float("inf")):
        x = torch.ones(2, 40)
        x[1, 3] = bad
        with pytest.raises(ValueError, match="must be finite"):
            OBSERVERS[name](QuantSpec(4, PerChannel())).observe(x)


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_scale_that_overflows_is_refused(name: str) -> None:
    """float16 scales reach 65504: no observer may hand out an infinite one."""
    x = torch.linspace(-3e6, 3e6, 300)[None]
    with pytest.raises(ValueError, match=r"overflows|every scale must be finite"):
        OBSERVERS[name](QuantSpec(4, PerChannel())).observe(x)


@pytest.mark.parametrize("name", ["percentile", "histogram"])
@pytest.mark.parametrize("keep", [30.0, 101.0, float("nan")])
def test_a_range_has_its_upper_end_above(name: str, keep: float) -> None:
    with pytest.raises(ConfigError, match="the upper percentile of a range"):
        OBSERVERS[name](QuantSpec(4, PerChannel()), keep=keep)  # type: ignore[call-arg]


def test_unknown_names_are_offered_near_ones() -> None:
    with pytest.raises(ConfigError, match="unknown observer 'msee'; did you mean 'mse'"):
        OBSERVERS["msee"]
