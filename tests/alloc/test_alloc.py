from __future__ import annotations

import numpy as np
import pytest

from cmibq.alloc import ALLOCATORS, MENUS, Menu, Units, allocate_bits, layer_bytes, row_bytes
from cmibq.errors import ConfigError
from cmibq.io.manifest import LayerSpec


def some(rng: np.random.Generator, n: int = 40, menu: str = "decode") -> Units:
    bits = MENUS[menu].bits
    d = (rng.gamma(1, 1, (n, 1)) * 4.0 ** -np.array(bits)).astype(np.float32)
    return Units(bits, d, np.array(bits, np.int64), rng.integers(1, 9, n) * 1024)


@pytest.mark.parametrize("name", sorted(ALLOCATORS))
def test_every_allocator_keeps_the_budget(name: str, rng: np.random.Generator) -> None:
    units = some(rng)
    for mean in (2.0, 3.1, 4.5, 8.0):
        budget = int(mean * units.weight.sum())
        got = ALLOCATORS[name](units, budget)
        option = np.searchsorted(units.bits, got.bits)
        every = np.arange(len(option))
        assert set(got.bits.tolist()) <= set(units.bits)
        assert got.cost == units.costs()[every, option].sum() <= budget
        chosen = units.distortion[every, option].astype(np.float64).sum()
        assert got.distortion == pytest.approx(chosen, rel=1e-12)


def test_exact_is_never_worse_than_uniform(rng: np.random.Generator) -> None:
    for menu in MENUS:
        units = some(rng, menu=menu)
        budget = int(8 * units.weight.sum())
        for share in (1.0, 0.9, 0.7):
            try:
                flat = ALLOCATORS["uniform"](units, int(share * budget))
            except ConfigError:
                continue
            assert ALLOCATORS["exact"](units, int(share * budget)).distortion <= flat.distortion


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_bytes_are_those_of_a_package(bits: int, symmetric: bool) -> None:
    for n, k, group in ((64, 128, 32), (7, 96, 32), (5, 100, 0), (3, 36, 12)):
        spec = LayerSpec((n, k), bits=bits, group_size=group, symmetric=symmetric)
        assert layer_bytes([(n, k)], (bits,), group, symmetric=symmetric).tolist() == [
            [spec.nbytes]
        ]


def test_a_budget_in_bytes(rng: np.random.Generator) -> None:
    shapes = [(64, 128), (256, 128), (128, 512)] * 5
    bits = MENUS["decode"].bits
    cost = layer_bytes(shapes, bits, 128)
    d = rng.gamma(1, 1, (15, 1)) * 4.0 ** -np.array(bits) * [[n * k] for n, k in shapes]
    got = ALLOCATORS["exact"](Units(bits, d.astype(np.float32), cost), int(cost[:, 2].sum()))
    assert got.gap == 0.0
    assert got.cost <= cost[:, 2].sum()


def test_mean_of_a_menu() -> None:
    table = np.array([[9.0, 4.0, 1.0, 0.5]] * 4)
    assert allocate_bits(table, 3.0, menu="decode").cost <= 12
    assert allocate_bits(table, 99.0, menu="decode").bits.tolist() == [8] * 4
    with pytest.raises(ConfigError, match=r"mean is 1.5; menu 'decode' has no fewer than 2 bits"):
        allocate_bits(table, 1.5, menu="decode")


def test_refused() -> None:
    with pytest.raises(ConfigError, match=r"bits is \(3, 2\); a menu has growing widths"):
        Menu((3, 2))
    with pytest.raises(ConfigError, match="distortion has 2 columns for 3 widths"):
        Units((2, 3, 4), np.ones((1, 2), np.float32), np.arange(3))
    with pytest.raises(ConfigError, match=r"cost is \(2,\)"):
        Units((2, 3, 4), np.ones((1, 3), np.float32), np.arange(2))
    with pytest.raises(ConfigError, match="weight needs one element per unit"):
        Units((2, 3), np.ones((1, 2), np.float32), np.arange(2), np.ones(2, np.int64))
    with pytest.raises(ConfigError, match="a group must divide the row"):
        row_bytes(100, 4, 32)
    with pytest.raises(ConfigError, match="unknown menu 'decoder'; did you mean 'decode'"):
        MENUS["decoder"]
