"""Layers whose outputs have codes of several widths: 16 outputs (a strip) at a time."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmibq.errors import ConfigError, ModelError
from cmibq.nn import PackedLinear, QuantLinear, State, convert_, prepare_
from cmibq.ops import qgemm
from cmibq.quant import (
    PerChannel,
    PerGroup,
    PerTensor,
    QuantSpec,
    fake_quantize_weight,
    quantize_weight,
)
from cmibq.strips import STRIP, check_bits, runs

FORMS = [
    # outputs, inputs, group, symmetric, widths
    (48, 64, 16, False, (2, 4, 8)),
    (40, 96, 32, True, (3, 2, 8)),  # the last strip has 8 outputs
    (17, 48, -1, False, (5, 2)),  # the last strip has one
    (112, 72, 24, False, (2, 3, 4, 5, 6, 7, 8)),  # groups are parts of tiles
    (100, 40, 40, True, (8, 7, 6, 5, 4, 3, 2)),
    (64, 7, -1, True, (3, 3, 2, 2)),  # rows of odd bytes
    (33, 512, 256, False, (4, 4, 2)),
]
Form = tuple[int, int, int, bool, tuple[int, ...]]


def spec_of(form: Form) -> QuantSpec:
    return QuantSpec(form[4], PerGroup(form[2]), form[3])


def linear(n: int, k: int, *, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(n + k)
        return nn.Linear(k, n, bias)


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def strips_of(layer: nn.Linear, form: Form, act_bits: int = 16) -> list[PackedLinear]:
    """Return a layer of one width for each strip."""
    made = []
    for at, bits in enumerate(form[4]):
        rows = slice(STRIP * at, STRIP * (at + 1))
        part = nn.Linear(form[1], len(layer.weight[rows]), layer.bias is not None)
        part.weight = nn.Parameter(layer.weight[rows].detach())
        if layer.bias is not None:
            part.bias = nn.Parameter(layer.bias[rows].detach())
        spec = QuantSpec(bits, PerGroup(form[2]), form[3])
        made.append(PackedLinear.from_linear(part, spec, act_bits=act_bits))
    return made


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("act_bits", [8, 16])
def test_equals_its_strips_side_by_side(form: Form, act_bits: int) -> None:
    layer = linear(*form[:2])
    mixed = PackedLinear.from_linear(layer, spec_of(form), act_bits=act_bits)
    parts = strips_of(layer, form, act_bits)
    for rows, dtype in ((1, torch.float32), (3, torch.bfloat16), (40, torch.float32)):
        x = tokens(rows, form[1]).to(dtype)
        want = torch.cat([part(x) for part in parts], 1)
        assert torch.equal(mixed(x), want), (rows, dtype)
    assert mixed.nbytes() == sum(part.nbytes() for part in parts) + len(form[4])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_weight_is_the_rounded_weight_bit_for_bit(form: Form) -> None:
    layer, spec = linear(*form[:2]), spec_of(form)
    want = fake_quantize_weight(layer.weight, spec)
    packed = PackedLinear.from_linear(layer, spec)
    assert torch.equal(packed.dequantize(), want)
    packed.repack_()
    assert torch.equal(packed.dequantize(), want)
    x = tokens(5, form[1])
    torch.testing.assert_close(packed(x), nn.functional.linear(x, want, layer.bias))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_state_dict_and_back(form: Form) -> None:
    n, k, group, symmetric, bits = form
    packed = PackedLinear.from_linear(linear(n, k), spec_of(form))
    first = {name: t.clone() for name, t in packed.state_dict().items()}
    groups = k // group if group > 0 else 1
    count = [min(STRIP, n - STRIP * i) for i in range(len(bits))]
    code_bytes = sum(rows * -(-k * b // 8) for rows, b in zip(count, bits, strict=True))
    zero_bytes = sum(rows * -(-groups * b // 8) for rows, b in zip(count, bits, strict=True))
    assert first["qweight"].shape == (code_bytes,)
    assert ("zeros" in first) != symmetric
    assert symmetric or first["zeros"].shape == (zero_bytes,)
    assert first["strip_bits"].tolist() == list(bits)
    x = tokens(2, k)
    y = packed(x)
    held = packed.state_dict()
    assert held.keys() == first.keys()
    assert all(torch.equal(held[name], t) for name, t in first.items())
    file = io.BytesIO()
    torch.save(packed, file)
    file.seek(0)
    new = PackedLinear(k, n, bits=bits, group_size=group, symmetric=symmetric, bias=True)
    new.load_state_dict(held)
    for other in (new, copy.deepcopy(packed), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), y)
        assert other.bits == bits


def test_other_widths_are_refused_and_nothing_changes() -> None:
    state = PackedLinear.from_linear(linear(40, 32), QuantSpec((2, 4, 8), PerGroup(16)))
    other = PackedLinear.from_linear(linear(40, 32), QuantSpec((4, 2, 8), PerGroup(16)))
    x, kept = tokens(1, 32), other.state_dict()
    y = other(x)
    with pytest.raises(RuntimeError, match="strip_bits: the state dict has other widths"):
        other.load_state_dict(state.state_dict(), strict=False)
    assert torch.equal(other(x), y)
    assert other.state_dict()["strip_bits"].tolist() == kept["strip_bits"].tolist() == [4, 2, 8]
    with pytest.raises(RuntimeError, match="strip_bits"):  # missing
        other.load_state_dict({k: t for k, t in kept.items() if k != "strip_bits"})
    uniform = PackedLinear.from_linear(linear(40, 32), QuantSpec(4, PerGroup(16)))
    with pytest.raises(RuntimeError, match="strip_bits"):  # unexpected
        uniform.load_state_dict(kept)


@pytest.mark.parametrize(("n", "bits"), [(40, (4, 4, 4)), (16, (3,)), (5, np.array([6], np.uint8))])
def test_equal_widths_are_one_width(n: int, bits: tuple[int, ...]) -> None:
    layer = linear(n, 32)
    mixed = PackedLinear.from_linear(layer, QuantSpec(bits, PerGroup(16)))
    one = PackedLinear.from_linear(layer, QuantSpec(int(bits[0]), PerGroup(16)))
    assert mixed.bits == one.bits == int(bits[0])
    state = mixed.state_dict()
    assert state.keys() == one.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in one.state_dict().items())


def test_up_activation_and_residual() -> None:
    form = FORMS[1]
    layer = PackedLinear.from_linear(linear(40, 96), spec_of(form))
    x, up, rest = tokens(3, 96), tokens(3, 40, seed=2), tokens(3, 40, seed=3)
    got = layer(x, activation="silu", up=up, residual=rest)
    torch.testing.assert_close(got, nn.functional.silu(layer(x)) * up + rest)


def test_traced_before_the_first_pass_and_after() -> None:
    layer = PackedLinear.from_linear(linear(40, 96), spec_of(FORMS[1]))
    x = tokens(3, 96)
    torch._dynamo.reset()
    before = torch.compile(layer, backend="eager", fullgraph=True)(x)
    y = layer(x)
    assert torch.equal(before, y)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), y)


@pytest.mark.parametrize("quantizer", ["affine", "learned"])
def test_trains_and_packs_what_it_computed(quantizer: str) -> None:
    model = nn.Sequential(linear(40, 96))
    spec = spec_of(FORMS[1])
    prepare_(model, {"0": spec}, quantizer=quantizer)
    fake = model[0]
    assert isinstance(fake, QuantLinear)
    with torch.no_grad():
        want = fake_quantize_weight(fake.weight, spec)
    x = tokens(4, 96)
    torch.testing.assert_close(fake(x), nn.functional.linear(x, want, fake.bias))
    fake(x).square().sum().backward()
    assert fake.weight.grad is not None
    with torch.no_grad():
        assert fake.weight_quantizer is not None
        fake.weight.sub_(0.01 * fake.weight.grad)
        for parameter in fake.weight_quantizer.parameters():
            assert parameter.grad is not None
            parameter.sub_(1e-4 * parameter.grad)
        y = fake(x)
    convert_(model, {"0": spec})
    assert model[0].bits == spec.bits
    torch.testing.assert_close(model[0](x), y)


def test_state_float_and_back() -> None:
    layer = QuantLinear(96, 40, spec=spec_of(FORMS[1]))
    layer.set_state_(State.FAKE)
    assert layer.weight_quantizer is not None
    want = fake_quantize_weight(layer.weight, layer.spec)
    assert torch.equal(layer.weight_quantizer(layer.weight), want)


@pytest.mark.parametrize("observer", ["mse", "percentile", "kl"])
def test_observers_see_the_rows_of_one_width(observer: str) -> None:
    w, group = linear(40, 96).weight.detach(), PerGroup(32)
    q = quantize_weight(w, QuantSpec((3, 2, 8), group, observer=observer))
    for start, stop, bits in runs((3, 2, 8), 40):
        one = quantize_weight(w[start:stop], QuantSpec(bits, group, observer=observer))
        rows = slice(3 * start, 3 * stop)
        assert torch.equal(q.scale[rows], one.scale)
        assert torch.equal(q.zero_point[rows], one.zero_point)
        assert torch.equal(q.hi()[rows], one.hi())
        assert torch.equal(q.to("cpu").lo()[rows], one.lo())


def test_what_is_refused() -> None:
    layer = linear(40, 32)
    with pytest.raises(ModelError, match=r"fc: bits has 2 widths for 40 outputs; .* or 3"):
        PackedLinear.from_linear(layer, QuantSpec((2, 4), PerGroup(16)), name="fc")
    with pytest.raises(ModelError, match=r"fc: bits\[1\] is 1; allowed are 2\.\.8"):
        PackedLinear.from_linear(layer, QuantSpec((2, 1, 4), PerGroup(16)), name="fc")
    with pytest.raises(ConfigError, match=r"bits is \(2, 9\); allowed are 1\.\.8"):
        QuantSpec((2, 9), PerGroup(16))
    with pytest.raises(ConfigError, match="mixed bits need PerGroup or PerChannel"):
        QuantSpec((2, 4), PerTensor())
    with pytest.raises(ConfigError, match="mixed bits need"):
        QuantSpec((2, 4), PerChannel(1))
    with pytest.raises(ConfigError, match="2 widths where one is needed"):
        _ = QuantSpec((2, 4), PerGroup(16)).grid
    with pytest.raises(ConfigError, match=r"bits\[0\] is 2.5"):
        PackedLinear(32, 40, bits=(2.5, 3, 4), group_size=8, symmetric=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="4 widths for 40 outputs"):
        check_bits((2, 2, 2, 4), 40)
    packed = torch.zeros(7, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"packed is \[7\], expected \[\d+\] for mixed bits"):
        qgemm(torch.ones(1, 32), packed, torch.ones(40, 2).half(), bits=(2, 3, 4))
    q = quantize_weight(layer.weight, QuantSpec(4, PerGroup(16)))
    with pytest.raises(ConfigError, match="4 bits; expected"):
        QuantLinear.from_linear(layer, QuantSpec((2, 3, 4), PerGroup(16))).quantizer(
            QuantSpec((2, 3, 4), PerGroup(16)), q
        )
