"""Every quantiser in the registry: idempotent, on its grid, with the gradient of its surrogate."""

from __future__ import annotations

import pytest
import torch

from cmibq.errors import ConfigError
from cmibq.quant import QUANTIZERS, PerChannel, PerGroup, PerTensor, QuantSpec, RangeMode
from cmibq.quant.functional import fake_quantize_weight
from cmibq.quant.quantizers import Quantizer
from cmibq.quant.quantizers.learned import LearnedQuantizer

SPECS = [
    QuantSpec(4, PerGroup(8)),
    QuantSpec(2, PerChannel(1), symmetric=True),
    QuantSpec(3, PerTensor(), mode=RangeMode(0)),
    QuantSpec(8, PerChannel(), symmetric=True, mode=RangeMode.SYMMETRIC),
]
sweep = pytest.mark.parametrize("name", sorted(QUANTIZERS))
specs = pytest.mark.parametrize("spec", SPECS, ids=str)


def weight(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(6, 16, dtype=dtype, generator=torch.Generator().manual_seed(7))


def made(name: str, spec: QuantSpec) -> Quantizer:
    """Return a quantiser whose grid is narrower than the weight, so that some values saturate."""
    return QUANTIZERS[name].of(0.6 * weight(), spec)


def test_the_sweep_sees_every_quantiser() -> None:
    assert set(QUANTIZERS) >= {"affine", "learned"}


@sweep
@specs
def test_starts_as_plain_fake_quantisation(name: str, spec: QuantSpec) -> None:
    w = weight()
    assert torch.equal(QUANTIZERS[name].of(w, spec)(w), fake_quantize_weight(w, spec))


@sweep
@specs
def test_grid_membership_and_idempotence(name: str, spec: QuantSpec) -> None:
    w, quantizer = weight(), made(name, spec)
    out = quantizer(w).detach()
    assert out.shape == w.shape
    assert torch.equal(quantizer(out), out)
    q = quantizer.qparams()
    level = spec.granularity.to_matrix(out) / q.scale[:, None]
    torch.testing.assert_close(level, level.round(), rtol=2**-22, atol=0)
    assert (level.round() >= q.lo()[:, None]).all()
    assert (level.round() <= q.hi()[:, None]).all()


@sweep
@specs
def test_gradient_is_that_of_the_surrogate(name: str, spec: QuantSpec) -> None:
    """With the rounding error frozen the quantiser is piecewise linear; gradcheck that."""
    quantizer = made(name, spec).double()
    if isinstance(quantizer, LearnedQuantizer):
        quantizer.gradient_factor = False
    q = quantizer.qparams()
    m = spec.granularity.to_matrix(weight(torch.float64)).requires_grad_()
    scale = q.scale[:, None].clone().requires_grad_()
    lo, hi = q.lo()[:, None], q.hi()[:, None]
    v = torch.clamp(m / scale, lo, hi).detach()
    frozen = v.round() - v

    def surrogate(m: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (torch.clamp(m / scale, lo, hi) + frozen) * scale

    assert torch.autograd.gradcheck(surrogate, (m, scale))
    g = torch.randn_like(m)
    want = torch.autograd.grad(surrogate(m, scale), (m, scale), g)
    trained = list(quantizer.parameters())
    got = torch.autograd.grad(quantizer.fake(m), [m, *trained], g)
    torch.testing.assert_close(got[0], want[0])
    if trained:
        torch.testing.assert_close(got[1], want[1][:, 0])


@sweep
@specs
def test_state_round_trip(name: str, spec: QuantSpec) -> None:
    w, quantizer = weight(), made(name, spec)
    other = QUANTIZERS[name].of(w, spec)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(w), quantizer(w))


@sweep
def test_dtype_and_repr(name: str) -> None:
    quantizer = made(name, SPECS[0])
    assert quantizer(weight().bfloat16()).dtype == torch.bfloat16
    assert "bits=4" in repr(quantizer)


@specs
def test_the_gradient_factor_of_learned_steps(spec: QuantSpec) -> None:
    w, grads = weight(), []
    for factor in (False, True):
        quantizer = LearnedQuantizer(spec, made("learned", spec).qparams(), gradient_factor=factor)
        quantizer(w).square().sum().backward()
        grads.append(quantizer.scale.grad)
    cols = spec.granularity.matrix(w.shape)[1]
    top = 2 ** (spec.bits - 1) - 1 if spec.symmetric else 2**spec.bits - 1
    torch.testing.assert_close(grads[1], grads[0] / (cols * top) ** 0.5)


def test_learned_steps_lower_the_error() -> None:
    w = weight()
    quantizer = LearnedQuantizer.of(3 * w, QuantSpec(3, PerChannel()))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    errors = []
    for _ in range(60):
        loss = (quantizer(w) - w).square().mean()
        errors.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert errors[-1] < 0.5 * errors[0]


def test_a_step_size_never_reaches_zero() -> None:
    quantizer = LearnedQuantizer.of(weight(), QuantSpec(4, PerChannel()))
    with torch.no_grad():
        quantizer.scale.zero_()
    assert float(quantizer.qparams().scale.min()) == 2.0**-24
    assert quantizer(weight()).isfinite().all()


@sweep
def test_specs_and_grids_must_fit(name: str) -> None:
    grids = made(name, SPECS[0]).qparams()
    with pytest.raises(ConfigError, match="a quantiser keeps its grids"):
        QUANTIZERS[name](QuantSpec(4, PerGroup(8), dynamic=True), grids)
    with pytest.raises(ConfigError, match="and 4 bits; expected as many of each and 3 bits"):
        QUANTIZERS[name](QuantSpec(3, PerGroup(8)), grids)
