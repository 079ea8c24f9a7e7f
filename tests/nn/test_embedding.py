from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from cmibq.errors import ConfigError
from cmibq.nn import Joined, PackedEmbedding, PackedLinear, convert_, iter_packed
from cmibq.quant import PerChannel, PerGroup, QuantSpec, fake_quantize_weight

SPECS = [
    QuantSpec(8, PerGroup(16), True),
    QuantSpec(8, PerChannel(0), True),
    QuantSpec(4, PerGroup(16), False),
    QuantSpec(3, PerGroup(-1), False),
]


def table(rows: int = 21, cols: int = 48) -> nn.Embedding:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rows)
        return nn.Embedding(rows, cols)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_rows_are_those_of_the_rounded_table(spec: QuantSpec) -> None:
    plain = table()
    packed = PackedEmbedding.from_embedding(plain, spec)
    whole = packed.dequantize()
    assert torch.equal(whole, fake_quantize_weight(plain.weight.detach(), spec))
    ids = torch.tensor([[0, 20, 7], [7, 7, 1]])
    assert torch.equal(packed(ids), whole[ids])
    assert packed(ids[:0]).shape == (0, 3, 48)
    assert packed(torch.tensor(5)).shape == (48,)
    assert (packed.num_embeddings, packed.embedding_dim) == (21, 48)


def test_ids_out_of_range() -> None:
    packed = PackedEmbedding.from_embedding(table(), SPECS[0])
    with pytest.raises(IndexError):
        packed(torch.tensor([21]))


def test_casts_change_the_result_only() -> None:
    packed = PackedEmbedding.from_embedding(table(), SPECS[0])
    before, ids = packed(torch.arange(21)), torch.arange(21)
    half = copy.deepcopy(packed).to(torch.bfloat16)
    assert half(ids).dtype == torch.bfloat16
    assert torch.equal(half(ids), before.to(torch.bfloat16))
    assert half.scales.dtype == torch.float16
    assert torch.equal(pickle.loads(pickle.dumps(packed))(ids), before)


def test_state_dicts_fit() -> None:
    packed = PackedEmbedding.from_embedding(table(), SPECS[2])
    other = PackedEmbedding(21, 48, bits=4, group_size=16, symmetric=False)
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other(torch.arange(21)), packed(torch.arange(21)))


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="one width"):
        PackedEmbedding(32, 16, bits=(2, 4), group_size=16, symmetric=True)
    with pytest.raises(ConfigError, match="no bias"):
        PackedEmbedding(32, 16, bits=4, group_size=16, symmetric=True, act_bits=8)
    with pytest.raises(ConfigError, match="no tiles"):
        PackedEmbedding(32, 16, bits=4, group_size=16, symmetric=True).repack_()


def test_convert_takes_embeddings_and_tied_heads() -> None:
    model = nn.Module()
    model.table, model.head = table(32, 48), nn.Linear(48, 32, bias=False)
    model.head.weight = model.table.weight
    convert_(model, {"table": SPECS[0], "head": SPECS[0]})
    kinds = [type(m) for _, m in iter_packed(model)]
    assert kinds == [PackedEmbedding, PackedLinear]
    assert torch.equal(model.table.dequantize(), model.head.dequantize())


@pytest.mark.parametrize("bits", [(4, 4, 4), (4, 8, 2)])
@pytest.mark.parametrize("act_bits", [8, 16])
def test_joined_layers_are_bit_equal(bits: tuple[int, ...], act_bits: int) -> None:
    sizes, layers = (32, 16, 24), []
    for n, width, biased in zip(sizes, bits, (True, False, True), strict=True):
        linear = nn.Linear(64, n, bias=biased)
        spec = QuantSpec(width, PerGroup(32), True)
        layers.append(PackedLinear.from_linear(linear, spec, act_bits=act_bits))
    assert Joined.fits(layers)
    assert not Joined.fits(layers[::-1])  # 24 outputs are no whole strips
    from cmibq.ops import qlinear

    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([layer(x) for layer in layers], 1)
    states = [{k: v.clone() for k, v in layer.state_dict().items()} for layer in layers]
    joined = Joined(layers)
    tiles = joined.tiles()
    found = qlinear(x, tiles, joined.tiling, joined.bias, act_bits=act_bits)
    assert torch.equal(found, expected)
    assert joined.tiles() is tiles
    assert torch.equal(torch.cat([layer(x) for layer in layers], 1), expected)
    for layer, state in zip(layers, states, strict=True):
        for name, value in layer.state_dict().items():
            assert torch.equal(value, state[name])
    layers[1].load_state_dict(states[1])  # moves it: joined afresh
    assert joined.tiles() is not tiles
    again = qlinear(x, joined.tiles(), joined.tiling, joined.bias, act_bits=act_bits)
    assert torch.equal(again, expected)
