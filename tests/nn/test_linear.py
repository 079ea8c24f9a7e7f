from __future__ import annotations

import pytest
import torch
from torch import nn

from cmibq.errors import ConfigError, ModelError
from cmibq.nn import PackedLinear, QuantLinear, State, convert_, iter_packed, prepare_
from cmibq.quant import PerGroup, QuantSpec, fake_quantize_tokens, fake_quantize_weight

SPEC = QuantSpec(3, PerGroup(16))


def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))


def tokens() -> torch.Tensor:
    return torch.randn(5, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("act_bits", [4, 8, 16])
def test_fake_state_is_the_published_formula(act_bits: int) -> None:
    layer, x = model()[0], tokens()
    fake = QuantLinear.from_linear(layer, SPEC, act_bits=act_bits)
    rounded = x if act_bits == 16 else fake_quantize_tokens(x, act_bits)
    want = nn.functional.linear(rounded, fake_quantize_weight(layer.weight, SPEC), layer.bias)
    assert torch.equal(fake(x), want)
    assert fake.weight is layer.weight
    assert fake.bias is layer.bias


def test_gradients_are_straight_through() -> None:
    layer, x = model()[0], tokens().requires_grad_()
    fake = QuantLinear.from_linear(layer, SPEC, act_bits=8)
    fake(x).sum().backward()
    with torch.no_grad():
        weight = fake_quantize_weight(layer.weight, SPEC)
        torch.testing.assert_close(x.grad, weight.sum(0).expand_as(x))
        inputs = fake_quantize_tokens(x, 8).sum(0).expand_as(layer.weight)
        grid = fake.qparams()
        v = layer.weight.reshape(-1, 16) / grid.scale[:, None]
        inside = (v >= grid.lo()[:, None]) & (v <= grid.hi()[:, None])
        torch.testing.assert_close(layer.weight.grad, inputs * inside.reshape(inputs.shape))


def test_states() -> None:
    layer = QuantLinear(32, 16, spec=SPEC)
    x = tokens()
    float_result = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), float_result)
    with pytest.raises(ConfigError, match="no grids yet"):
        layer.qparams()
    layer.set_state_(State.OBSERVE)
    assert torch.equal(layer(x[:2]), float_result[:2])
    layer(x[2:])
    assert torch.equal(layer.input_absmax, x.abs().amax(0))
    layer.weight.data *= 2  # the grids are those of the weight when the state is entered
    layer.set_state_(State.FAKE)
    want = nn.functional.linear(x, fake_quantize_weight(layer.weight, SPEC), layer.bias)
    assert torch.equal(layer(x), want)
    assert torch.equal(
        layer.set_state_(State.FLOAT)(x), nn.functional.linear(x, layer.weight, layer.bias)
    )
    with pytest.raises(ConfigError, match="state is packed; QuantLinear can be float, observe"):
        layer.set_state_(State.PACKED)
    with pytest.raises(ConfigError, match="act_bits is 1"):
        QuantLinear(4, 4, spec=SPEC, act_bits=1)


def test_prepare_then_convert_keeps_the_grids() -> None:
    net, x = model(), tokens()
    prepare_(net, {"0": SPEC, "2": SPEC})
    want = net(x)
    with torch.no_grad():
        net[0].weight *= 0.99  # trained after the grids were made
    trained = net[0].weight_quantizer(net[0].weight)
    convert_(net, {"0": SPEC, "2": SPEC})
    assert [n for n, _ in iter_packed(net)] == ["0", "2"]
    assert torch.equal(net[0].dequantize(), trained)
    assert net(x).shape == want.shape


def test_learned_grids_are_packed() -> None:
    net = model()
    prepare_(net, {"0": SPEC}, quantizer="learned")
    with torch.no_grad():
        net[0].weight_quantizer.scale *= 0.9
    want = net[0].weight_quantizer(net[0].weight).detach()
    convert_(net, {"0": SPEC})
    assert torch.equal(net[0].dequantize(), want)


@pytest.mark.parametrize("act_bits", [8, 16])
def test_packed_computes_what_fake_computes(act_bits: int) -> None:
    net, x = model(), tokens()
    fake = QuantLinear.from_linear(net[0], SPEC, act_bits=act_bits)
    packed = PackedLinear.from_linear(net[0], SPEC, act_bits=act_bits)
    w = packed.dequantize().double().abs()
    size = nn.functional.linear(x.double().abs(), w, net[0].bias.double().abs())
    # Both sum K products in float32, in different orders: K + 4 roundings each.
    bound = 2 * (32 + 4) * 2.0**-24 * 1.02 * size
    assert bool(((fake(x) - packed(x)).abs() <= bound).all())


def test_progress_wraps_the_names() -> None:
    seen: list[str] = []

    def progress(names):
        for name in names:
            seen.append(name)
            yield name

    convert_(model(), {"0": SPEC, "2": SPEC}, progress=progress)
    assert seen == ["0", "2"]


def test_wrong_names_and_weights_are_reported_before_anything_changes() -> None:
    net = model()
    with pytest.raises(ModelError, match=r"no layer '22'; did you mean '2'"):
        prepare_(net, {"0": SPEC, "22": SPEC})
    with pytest.raises(ModelError, match=r"1: is a ReLU; only nn\.Linear"):
        convert_(net, {"0": SPEC, "1": SPEC})
    net[2].weight.data[0, 0] = float("inf")
    with pytest.raises(ModelError, match="2: 1 of 64 values are NaN or infinite"):
        prepare_(net, {"0": SPEC, "2": SPEC})
    assert [type(m) for m in net] == [nn.Linear, nn.ReLU, nn.Linear]
