from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cmibq.io.ggml import Blocks, encode_blocks, pick_kind
from cmibq.nn import PackedLinear
from cmibq.quant import PerChannel, PerGroup, QuantSpec


def decode(blocks: Blocks, cols: int) -> np.ndarray:
    """Decode blocks by the definitions in ggml-common.h, one weight after the other."""
    if blocks.kind == "F16":
        return blocks.data.astype(np.float32)
    size = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q8_0": 34}[blocks.kind]
    rows = []
    for row in blocks.data:
        weights = np.zeros(cols, np.float32)
        for b, block in enumerate(row.reshape(-1, size)):
            d = np.float32(block[:2].view(np.float16)[0])
            for i in range(32):
                if blocks.kind == "Q8_0":
                    value = d * np.float32(block[2:].view(np.int8)[i])
                else:
                    start = {"Q4_0": 2, "Q4_1": 4, "Q5_0": 6}[blocks.kind]
                    level = int(block[start + i % 16]) >> (4 * (i // 16)) & 15
                    if blocks.kind == "Q4_0":
                        value = d * np.float32(level - 8)
                    elif blocks.kind == "Q4_1":
                        value = d * np.float32(level) + np.float32(block[2:4].view(np.float16)[0])
                    else:
                        high = int(block[2:6].view(np.uint32)[0]) >> i & 1
                        value = d * np.float32(level + 16 * high - 16)
                weights[b * 32 + i] = value
        rows.append(weights)
    return np.stack(rows)


def make(bits: int | tuple[int, ...], group: int, symmetric: bool, outs: int = 6) -> PackedLinear:
    torch.manual_seed(0)
    linear = nn.Linear(128, outs, bias=False)
    kind = PerGroup(group) if group > 0 else PerChannel(0)
    return PackedLinear.from_linear(linear, QuantSpec(bits, kind, symmetric))


@pytest.mark.parametrize("group", [32, 64, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_no_weight_changes(bits: int, symmetric: bool, group: int) -> None:
    layer = make(bits, group, symmetric)
    blocks = encode_blocks(layer, exact=True)
    want = layer.dequantize().numpy()
    got = decode(blocks, 128)
    if bits == 8 and not symmetric:
        assert blocks.anew
        assert np.abs(got - want).max() <= 0.51 * np.abs(want).max() / 127
    else:
        assert (blocks.exact, blocks.anew) == (True, False)
        np.testing.assert_array_equal(got, want)
        assert blocks.kind == pick_kind(bits, symmetric, exact=True)


def test_minima_are_rounded_to_float16() -> None:
    layer = make(4, 32, symmetric=False)
    blocks = encode_blocks(layer)
    assert blocks.kind == "Q4_1"
    step = layer.scales.float().repeat_interleave(32, 1).numpy()
    off = np.abs(decode(blocks, 128) - layer.dequantize().numpy()) / step
    assert 0 < off.max() < 0.004
    assert not blocks.exact


@pytest.mark.parametrize(
    ("bits", "symmetric", "kind"),
    [((2, 4), True, "Q4_0"), ((3, 8), True, "Q8_0"), ((2, 4), False, "Q5_0")],
)
def test_mixed_bits_take_the_widest(bits: tuple[int, ...], symmetric: bool, kind: str) -> None:
    layer = make(bits, 32, symmetric, outs=20)
    blocks = encode_blocks(layer)
    assert blocks.kind == kind
    np.testing.assert_array_equal(decode(blocks, 128), layer.dequantize().numpy())


def test_small_groups_are_rounded_anew() -> None:
    layer = make(4, 16, symmetric=True)
    blocks = encode_blocks(layer)
    assert (blocks.kind, blocks.anew, blocks.exact) == ("Q8_0", True, False)
    want = layer.dequantize().numpy()
    assert np.abs(decode(blocks, 128) - want).max() <= 0.51 * np.abs(want).max() / 127
    odd = PackedLinear.from_linear(nn.Linear(24, 4), QuantSpec(4, PerGroup(8), True))
    assert encode_blocks(odd).kind == "F16"


def test_the_package_agrees() -> None:
    gguf = pytest.importorskip("gguf")
    for bits, symmetric in ((4, True), (4, False), (5, True), (8, True)):
        layer = make(bits, 32, symmetric)
        blocks = encode_blocks(layer)
        kind = gguf.GGMLQuantizationType[blocks.kind]
        np.testing.assert_array_equal(
            gguf.quants.dequantize(blocks.data, kind), decode(blocks, 128)
        )
