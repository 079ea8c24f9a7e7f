from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cmibq.errors import ConfigError, ModelError
from cmibq.nn import PackedLinear, State
from cmibq.ops import codes_token, qgemm_s8
from cmibq.quant import (
    PerChannel,
    PerGroup,
    PerTensor,
    QuantSpec,
    RangeMode,
    fake_quantize_weight,
)

SPECS = [
    QuantSpec(bits, PerGroup(size), symmetric)
    for bits in range(2, 9)
    for size, symmetric in ((16, False), (16, True), (-1, True))
]


def linear(n: int = 24, k: int = 48, *, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(n + k)
        return nn.Linear(k, n, bias)


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Calls(TorchDispatchMode):
    """Counts the ops that run and notes the largest float tensor any of them makes."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count[str(func)] += 1
        for t in out if isinstance(out, tuple) else (out,):
            if isinstance(t, Tensor) and t.is_floating_point():
                self.largest = max(self.largest, t.numel())
        return out


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_weight_is_the_rounded_weight_bit_for_bit(spec: QuantSpec) -> None:
    layer = linear()
    packed = PackedLinear.from_linear(layer, spec)
    assert torch.equal(packed.dequantize(), fake_quantize_weight(layer.weight, spec))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_forward_is_the_linear_layer_of_that_weight(spec: QuantSpec) -> None:
    layer, x = linear(), tokens(2, 5, 48)
    packed = PackedLinear.from_linear(layer, spec)
    w = packed.dequantize().double()
    want = nn.functional.linear(x.double(), w, layer.bias.double())
    size = nn.functional.linear(x.double().abs(), w.abs(), layer.bias.double().abs())
    got = packed(x)
    assert got.shape == (2, 5, 24)
    assert bool(((got.double() - want).abs() <= 1.01 * (48 + 2) * 2.0**-24 * size).all())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integer_activations(bits: int) -> None:
    layer, x = linear(), tokens(3, 48)
    packed = PackedLinear.from_linear(layer, QuantSpec(bits, PerGroup(16), True), act_bits=8)
    weight = (packed.qweight, packed.scales, packed.zeros, packed.bias)
    assert torch.equal(packed(x), qgemm_s8(*codes_token(x), *weight, bits=bits))
    float_input = PackedLinear.from_linear(layer, QuantSpec(bits, PerGroup(16), True))
    step = x.abs().amax(1, keepdim=True) / 127  # an input is off by half a step at most
    bound = (step / 2) * packed.dequantize().abs().sum(1)
    assert bool(((packed(x) - float_input(x)).abs() <= 1.001 * bound + 1e-6).all())


@pytest.mark.parametrize("act_bits", [8, 16])
@pytest.mark.parametrize("tokens_at_once", [1, 64])
def test_no_float_weight_exists_and_one_op_runs(act_bits: int, tokens_at_once: int) -> None:
    layer = linear(256, 512, bias=False)
    packed = PackedLinear.from_linear(layer, QuantSpec(3, PerGroup(64), True), act_bits=act_bits)
    x = tokens(tokens_at_once, 512)
    packed(x)
    with Calls() as calls:
        packed(x)
    assert calls.count["cmibq.qlinear.default"] == 1
    assert calls.largest <= max(x.numel(), tokens_at_once * 256)
    assert not list(packed.parameters())
    held = sum(b.numel() * b.element_size() for b in packed.buffers())
    stored = sum(t.numel() * t.element_size() for t in packed.state_dict().values())
    assert held <= 1.1 * stored
    assert held == packed.nbytes() == 256 * (512 * 3 // 8) + 256 * 8 * 2
    assert packed.bits_per_weight() == 3 + 16 / 64
    extra = {k: v for k, v in vars(packed).items() if isinstance(v, Tensor)}
    assert not extra


def test_bits_per_weight_counts_zero_points_and_not_the_bias() -> None:
    packed = PackedLinear.from_linear(linear(16, 64), QuantSpec(4, PerGroup(32)))
    assert packed.bits_per_weight() == 4 + (16 + 4) / 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_converted_there_and_back(dtype: torch.dtype) -> None:
    packed, x = PackedLinear.from_linear(linear(), SPECS[0]), tokens(3, 48).to(dtype)
    assert torch.equal(packed(x), packed(x.float()).to(dtype))


def test_casts_leave_the_layer_as_it_is() -> None:
    packed = PackedLinear.from_linear(linear(), SPECS[0])
    before = {k: v.clone() for k, v in packed.state_dict().items()}
    packed.half().double().to(torch.bfloat16).float()
    for name, value in packed.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert packed.to("meta").qweight.is_meta


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[1]], ids=str)
def test_copies_compute_the_same_bits(spec: QuantSpec) -> None:
    packed, x = PackedLinear.from_linear(linear(), spec, act_bits=8), tokens(3, 48)
    want = packed(x)
    fresh = PackedLinear(
        48, 24, bits=spec.bits, group_size=16, symmetric=spec.symmetric, act_bits=8, bias=True
    )
    with pytest.raises(ValueError, match=r"scale\[0\] is 0"):
        fresh(x)
    memory = io.BytesIO()
    torch.save(packed.state_dict(), memory)
    memory.seek(0)
    fresh.load_state_dict(torch.load(memory, weights_only=True))
    for other in (fresh, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other(x), want)
        assert repr(other) == repr(packed)


def test_the_float_layer_stays_as_it_is() -> None:
    layer = linear().eval()
    before, bias = layer.weight.clone(), layer.bias.clone()
    packed = PackedLinear.from_linear(layer, SPECS[0])
    packed.bias += 1
    assert torch.equal(layer.weight, before)
    assert torch.equal(layer.bias, bias)
    assert not packed.training
    assert packed.state is State.PACKED


def test_compiled_equals_eager() -> None:
    x = tokens(3, 48)
    for act_bits in (8, 16):
        packed = PackedLinear.from_linear(linear(), SPECS[0], act_bits=act_bits)
        compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), packed(x))


def test_a_layer_that_cannot_be_packed_is_named() -> None:
    layer = linear()
    layer.weight.data[3, 5] = float("nan")
    with pytest.raises(ModelError, match=r"model\.down: 1 of 1152 values are NaN"):
        PackedLinear.from_linear(layer, SPECS[0], name="model.down")
    for size, message in ((32, "does not divide"), (12, "group_size is 12 for 48 inputs")):
        with pytest.raises(ModelError, match=f"model.up: .*{message}"):
            PackedLinear.from_linear(linear(), QuantSpec(4, PerGroup(size)), name="model.up")
    full = QuantSpec(4, PerGroup(16), mode=RangeMode(0))
    tensor, column = QuantSpec(4, PerTensor()), QuantSpec(4, PerChannel(1))
    for spec in (full, tensor, column):
        with pytest.raises(ModelError, match=r"model\.up: a packed layer stores one float16 scale"):
            PackedLinear.from_linear(linear(), spec, name="model.up")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "bits is 1; allowed are 2..8"),
        ({"bits": 9}, "bits is 9"),
        ({"act_bits": 4}, "act_bits is 4; packed layers take 8 or 16"),
        ({"group_size": 20}, "group_size is 20 for 48 inputs"),
        ({"group_size": 12}, "group_size is 12 for 48 inputs"),
    ],
)
def test_bad_arguments(change: dict[str, int], message: str) -> None:
    args: dict[str, Any] = {"bits": 4, "group_size": 16, "symmetric": True, **change}
    with pytest.raises(ConfigError, match=message):
        PackedLinear(48, 24, **args)


def test_odd_rows_and_whole_row_groups() -> None:
    layer = linear(5, 13)
    packed = PackedLinear.from_linear(layer, QuantSpec(3, PerChannel(0)))
    assert packed.group_size == 13
    assert torch.equal(
        packed.dequantize(), fake_quantize_weight(layer.weight, QuantSpec(3, PerChannel(0)))
    )
    assert PackedLinear(13, 5, bits=3, group_size=-1, symmetric=True).group_size == 13
