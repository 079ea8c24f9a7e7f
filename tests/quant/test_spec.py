from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch

from cmibq.errors import ConfigError
from cmibq.quant import (
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QParams,
    QuantSpec,
    RangeMode,
)


@pytest.mark.parametrize(
    ("granularity", "shape", "matrix"),
    [
        (PerTensor(), (3, 4, 5), (1, 60)),
        (PerChannel(), (3, 4, 5), (3, 20)),
        (PerChannel(1), (3, 4, 5), (4, 15)),
        (PerChannel(-1), (3, 4, 5), (5, 12)),
        (PerGroup(4), (3, 8), (6, 4)),
        (PerGroup(6), (3, 2, 6), (6, 6)),
        (PerGroup(-1), (3, 8), (3, 8)),
        (PerGroup(0), (3, 8), (3, 8)),
        (PerToken(), (2, 3, 8), (6, 8)),
    ],
)
def test_a_tensor_becomes_a_matrix_and_back(
    granularity: Granularity, shape: tuple[int, ...], matrix: tuple[int, int]
) -> None:
    t = torch.arange(torch.Size(shape).numel()).reshape(shape)
    m = granularity.to_matrix(t)
    assert m.shape == granularity.matrix(shape) == matrix
    assert m.is_contiguous()
    assert torch.equal(granularity.from_matrix(m, shape), t)


def test_channels_and_groups_hold_the_right_elements() -> None:
    t = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(PerChannel(1).to_matrix(t)[1], t[:, 1].reshape(-1))
    w = torch.arange(16).reshape(2, 8)
    assert PerGroup(4).to_matrix(w).tolist()[2] == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("granularity", "shape", "message"),
    [
        (PerGroup(48), (3, 128), "group size 48 does not divide the 128 elements of a row; .* 16"),
        (PerGroup(256), (3, 128), "group size 256 does not divide"),
        (PerGroup(4), (8,), "groups need rows"),
        (PerChannel(2), (3, 4), "axis is 2; a tensor of shape"),
        (PerToken(), (), "a scalar has no tokens"),
    ],
)
def test_shapes_that_do_not_fit(
    granularity: Granularity, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        granularity.matrix(shape)


def test_range_modes() -> None:
    asym, sym = QuantSpec(4, PerGroup(32)), QuantSpec(4, PerGroup(32), symmetric=True)
    assert asym.range_mode == RangeMode.ZERO_IN_RANGE | RangeMode.HALF_SCALE == 6
    assert sym.range_mode == RangeMode.SYMMETRIC | RangeMode.HALF_SCALE == 5
    assert RangeMode.reference(symmetric=False) == 0
    assert RangeMode.reference(symmetric=True) == 1
    assert QuantSpec(4, PerGroup(32), mode=RangeMode(0)).range_mode == 0
    assert asym.grid.levels == 16
    with pytest.raises(ValueError, match="8"):
        RangeMode(8)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"bits": 0}, r"bits is 0; allowed are 1..8 \(asymmetric\)"),
        ({"bits": 9}, r"bits is 9; allowed are 1..8"),
        ({"bits": 1, "symmetric": True}, r"bits is 1; allowed are 2..8 \(symmetric\)"),
        ({"bits": 4, "mode": RangeMode.SYMMETRIC}, "mode is .* but symmetric is False"),
        ({"bits": 4, "symmetric": True, "mode": RangeMode(0)}, "but symmetric is True"),
    ],
)
def test_specs_are_checked(args: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantSpec(granularity=PerTensor(), **args)


def test_specs_compare_and_travel() -> None:
    spec = QuantSpec(4, PerGroup(32), observer="mse")
    assert spec == QuantSpec(4, PerGroup(32), observer="mse")
    assert spec != QuantSpec(4, PerGroup(64), observer="mse")
    assert len({spec, copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))}) == 1


def test_bounds_of_grids() -> None:
    q = QParams(torch.ones(2), torch.tensor([0, 15], dtype=torch.uint8), 4)
    assert q.lo().tolist() == [0.0, -15.0]
    assert q.hi().tolist() == [15.0, 0.0]
    assert not q.lo().signbit()[0]
    assert q.to("cpu").scale is q.scale


def test_modes_are_those_of_the_header() -> None:
    text = (Path(__file__).parents[2] / "csrc/core/grid.h").read_text()
    header = {n: int(v) for n, v in re.findall(r"CQ_RANGE_(\w+) = (\d+)", text)}
    assert header.pop("MODES") == 2 ** len(RangeMode)
    names = {"SYMMETRIC": "SYMMETRIC", "ZERO_IN_RANGE": "ZERO", "HALF_SCALE": "HALF"}
    assert {m.name: m.value for m in RangeMode} == {n: header[h] for n, h in names.items()}
