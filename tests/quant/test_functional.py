from __future__ import annotations

import pytest
import torch

from cmibq.errors import ConfigError, ModelError
from cmibq.quant import (
    PerChannel,
    PerGroup,
    QuantSpec,
    fake_quantize_tokens,
    fake_quantize_weight,
    quantize_weight,
)

W4 = QuantSpec(4, PerGroup(32))


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_grids_are_those_of_the_groups() -> None:
    w = weight(6, 64)
    q = quantize_weight(w, W4)
    assert q.scale.shape == q.zero_point.shape == (12,)
    one = quantize_weight(w[1:2, 32:], W4)
    assert one.scale == q.scale[3]
    assert one.zero_point == q.zero_point[3]


def test_the_default_includes_zero_and_stores_half_scales() -> None:
    w = weight(6, 64).abs() + 1  # all positive: published code would saturate
    q = quantize_weight(w, W4)
    assert torch.equal(q.scale, q.scale.half().float())
    assert q.zero_point.count_nonzero() == 0
    error = (fake_quantize_weight(w, W4) - w).abs()
    # Half a step, and what rounding the scale to 11 bits moves the top level by.
    assert (error <= q.scale.repeat_interleave(32).reshape(6, 64) * (0.5 + 15 * 2**-11)).all()
    assert fake_quantize_weight(torch.zeros(2, 32), W4).count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    w = weight(4, 64).to(dtype)
    assert torch.equal(quantize_weight(w, W4).scale, quantize_weight(w.float(), W4).scale)
    got = fake_quantize_weight(w, W4)
    assert got.dtype == dtype
    assert torch.equal(got, fake_quantize_weight(w.float(), W4).to(dtype))


def test_a_transposed_channel_axis() -> None:
    w = weight(8, 6, 3, 3)
    got = fake_quantize_weight(w, QuantSpec(4, PerChannel(1)))
    want = fake_quantize_weight(w.transpose(0, 1).contiguous(), QuantSpec(4, PerChannel(0)))
    assert torch.equal(got, want.transpose(0, 1))


def test_gradient_is_straight_through() -> None:
    w = weight(4, 64).requires_grad_()
    fake_quantize_weight(w, W4).sum().backward()
    q = quantize_weight(w, W4)
    level = w.detach().reshape(8, 32) / q.scale[:, None]
    inside = (level >= q.lo()[:, None]) & (level <= q.hi()[:, None])
    assert w.grad is not None
    assert torch.equal(w.grad, inside.reshape(4, 64).float())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(bad: float) -> None:
    w = weight(4, 64)
    w[2, 3] = bad
    message = "layers.3.q_proj: 1 of 256 values are NaN or infinite"
    with pytest.raises(ModelError, match=message):
        quantize_weight(w, W4, name="layers.3.q_proj")
    with pytest.raises(ModelError, match=message):
        fake_quantize_weight(w, W4, name="layers.3.q_proj")


def test_errors_name_the_layer() -> None:
    with pytest.raises(ModelError, match="q_proj: group size 32 does not divide the 48 elements"):
        quantize_weight(weight(4, 48), W4, name="q_proj")
    with pytest.raises(ModelError, match=r"q_proj: qparams: scale\[0\] is inf"):
        quantize_weight(weight(4, 64) * 1e7, W4, name="q_proj")
    with pytest.raises(ConfigError, match="unknown observer 'min_max'; did you mean 'minmax'"):
        quantize_weight(weight(4, 64), QuantSpec(4, PerGroup(32), observer="min_max"))


def test_an_empty_weight_has_no_grids() -> None:
    assert quantize_weight(torch.zeros(0, 32), W4).scale.shape == (0,)


def test_tokens_of_any_shape_and_dtype() -> None:
    x = weight(2, 3, 40)
    got = fake_quantize_tokens(x, 8)
    assert torch.equal(got[1, 2], fake_quantize_tokens(x[1, 2], 8))
    scale = x.abs().amax(-1, keepdim=True) / 127
    assert ((got - x).abs() <= scale * 0.5001).all()
    assert fake_quantize_tokens(x.bfloat16(), 8).dtype == torch.bfloat16
    assert fake_quantize_tokens(x[:0], 8).shape == (0, 3, 40)
