"""Whole weights packed without torch: the bytes of a packed layer, and products with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmibq import arrays
from cmibq.errors import ConfigError
from cmibq.nn import PackedLinear
from cmibq.quant import PerGroup, QuantSpec

FORMS = [
    (48, 64, 16, False, (2, 4, 8)),
    (40, 96, 32, True, (3, 2, 8)),
    (17, 48, -1, False, (5, 2)),
    (112, 72, 24, False, (2, 3, 4, 5, 6, 7, 8)),
    (64, 7, -1, True, (3, 3, 2, 2)),
    (33, 64, 64, False, (4, 4, 4)),
    (33, 64, 8, True, 6),
]
Form = tuple[int, int, int, bool, tuple[int, ...] | int]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_is_what_a_packed_layer_is(form: Form, rng: np.random.Generator) -> None:
    n, k, group, symmetric, bits = form
    w = rng.normal(size=(n, k)).astype(np.float32)
    got = arrays.pack_weight(w, bits=bits, group_size=group, symmetric=symmetric)
    linear = torch.nn.Linear(k, n)
    linear.weight.data = torch.from_numpy(w)
    layer = PackedLinear.from_linear(linear, QuantSpec(bits, PerGroup(group), symmetric))
    assert linear.bias is not None
    assert np.array_equal(got.packed, layer.qweight)
    assert np.array_equal(got.scale, layer.scales)
    assert (got.zero is None) == (layer.zeros is None) == symmetric
    assert got.zero is None or np.array_equal(got.zero, layer.zeros)
    values = arrays.unpack_weight(*got, bits=bits, cols=k)
    assert np.array_equal(values, layer.dequantize())
    into = np.full((n, k), 7, np.float32)
    assert arrays.unpack_weight(*got, bits=bits, cols=k, out=into) is into
    assert np.array_equal(into, values)
    x, bias = rng.normal(size=(3, k)).astype(np.float32), linear.bias.detach().numpy()
    out = np.empty((3, n), np.float32)
    assert arrays.qgemm(x, *got, bias, bits=bits, out=out) is out
    assert np.array_equal(out, layer(torch.from_numpy(x)))
    layer.act_bits = 8
    codes, scale = arrays.codes_token(x)
    y = arrays.qgemm_s8(codes, scale, *got, bias, bits=bits)
    assert np.array_equal(y, layer(torch.from_numpy(x)))


def test_shrunken_ranges_are_no_worse(rng: np.random.Generator) -> None:
    w = rng.standard_t(3, size=(32, 64)).astype(np.float32)
    error = [
        np.square(arrays.unpack_weight(*packed, bits=(2, 3), cols=64) - w).sum()
        for packed in (arrays.pack_weight(w, bits=(2, 3), n_grid=n) for n in (0, 20))
    ]
    assert error[1] < error[0]


def test_nothing_to_pack() -> None:
    packed = arrays.pack_weight(np.empty((0, 8), np.float32), bits=4)
    assert packed.packed.shape == (0, 4)
    assert arrays.unpack_weight(*packed, bits=4, cols=8).shape == (0, 8)


def test_what_is_refused(rng: np.random.Generator) -> None:
    w = rng.normal(size=(32, 16)).astype(np.float32)
    with pytest.raises(ConfigError, match="3 widths for 32 outputs; give one width, or 2"):
        arrays.pack_weight(w, bits=(2, 4, 8))
    with pytest.raises(ConfigError, match=r"bits\[1\] is 1"):
        arrays.pack_weight(w, bits=(2, 1))
    with pytest.raises(ConfigError, match="bits is 9; allowed are"):
        arrays.pack_weight(w, bits=9)
    with pytest.raises(ValueError, match="group_size is 5; it must divide 16"):
        arrays.pack_weight(w, bits=4, group_size=5)
    with pytest.raises(ValueError, match="C-contiguous"):
        arrays.pack_weight(w.T, bits=4)
    with pytest.raises(ValueError, match="nan"):
        arrays.pack_weight(np.full((16, 8), np.nan, np.float32), bits=4)
    packed = arrays.pack_weight(w, bits=(2, 4))
    with pytest.raises(ValueError, match="packed has 192 bytes, expected 320"):
        arrays.unpack_weight(*packed, bits=(2, 8), cols=16)
    with pytest.raises(ConfigError, match="3 widths for 32 outputs"):
        arrays.qgemm(w[:1], *packed, bits=(2, 4, 8))
    with pytest.raises(ValueError, match="packed has 192, expected 320"):
        arrays.qgemm(w[:1], *packed, bits=(2, 8))
    with pytest.raises(TypeError, match="scale has dtype float32, expected float16"):
        arrays.qgemm(w[:1], packed.packed, packed.scale.astype(np.float32), bits=(2, 4))
