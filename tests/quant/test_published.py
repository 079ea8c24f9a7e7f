"""Quantisers equal the published code bit for bit on its edge rows; zero is +0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cmibq.quant import (
    PerChannel,
    PerGroup,
    PerTensor,
    QuantSpec,
    RangeMode,
    fake_quantize_tokens,
    fake_quantize_weight,
    quantize_weight,
)
from tests.golden.loader import load

QUANTISERS, ACT = load("quantisers"), load("walinear")
ASYM = [k[:-4] for k in QUANTISERS if "asym" in k and k.endswith("out")]
SYM = [k[:-4] for k in QUANTISERS if "sym/b" in k and "asym" not in k and k.endswith("out")]


def tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x.astype(np.float32))


def golden_input(name: str) -> Tensor:
    parts = name.split("/")
    ties = "/".join(parts[: parts.index(next(p for p in parts if p[0] == "b")) + 1]) + "/x"
    return tensor(QUANTISERS[ties if parts[0] == "ties" else "x"])


def equal(got: Tensor, want: np.ndarray) -> None:
    """Demand the same bits, the golden -0 read as +0."""
    bits = (want.astype(np.float32) + np.float32(0)).view(np.int32)
    np.testing.assert_array_equal(got.to(torch.float32).numpy().view(np.int32), bits)


@pytest.mark.parametrize("name", ASYM)
def test_asymmetric_groups(name: str) -> None:
    bits, group = name.split("/")[-2:]
    spec = QuantSpec(
        int(bits[1:]), PerGroup(int(group[1:])), mode=RangeMode.reference(symmetric=False)
    )
    w = golden_input(name)
    q = quantize_weight(w, spec)
    equal(q.scale, QUANTISERS[f"{name}/scale"])
    equal(q.zero_point, QUANTISERS[f"{name}/zero"])
    equal(fake_quantize_weight(w, spec), QUANTISERS[f"{name}/out"])


@pytest.mark.parametrize("name", SYM)
def test_symmetric_rows(name: str) -> None:
    mode = RangeMode.reference(symmetric=True)
    spec = QuantSpec(int(name[-1]), PerChannel(), symmetric=True, mode=mode)
    w = golden_input(name)
    equal(quantize_weight(w, spec).scale, QUANTISERS[f"{name}/scale"])
    equal(fake_quantize_weight(w, spec), QUANTISERS[f"{name}/out"])


def test_symmetric_tensor() -> None:
    spec = QuantSpec(8, PerTensor(), symmetric=True, mode=RangeMode.reference(symmetric=True))
    w = tensor(QUANTISERS["x"][:2])
    equal(fake_quantize_weight(w, spec), QUANTISERS["sym_tensor/b8/out"])


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_tokens(bits: int) -> None:
    equal(fake_quantize_tokens(tensor(ACT["x"]), bits), ACT[f"per_token/b{bits}"])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, -1])
def test_the_default_differs_only_where_the_range_leaves_zero_out(bits: int, group: int) -> None:
    spec = QuantSpec(bits, PerGroup(group), mode=RangeMode.ZERO_IN_RANGE)
    w = golden_input(f"asym/b{bits}/g{group}")
    m = spec.granularity.to_matrix(w)
    got = spec.granularity.to_matrix(fake_quantize_weight(w, spec))
    published = tensor(QUANTISERS[f"asym/b{bits}/g{group}/out"]).reshape(m.shape)
    mixed = (m.amin(1) <= 0) & (m.amax(1) >= 0)
    assert mixed.any()
    assert not mixed.all()
    equal(got[mixed], published[mixed].numpy())
    # Elsewhere a value is off by at most half a step, where published code saturates.
    scale = quantize_weight(w, spec).scale[:, None]
    assert ((got - m).abs()[~mixed] <= (scale * 0.5001).expand_as(m)[~mixed]).all()
    assert ((published - m).abs() > scale)[~mixed].any()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("reference", [False, True])
def test_zero_is_positive_zero(symmetric: bool, reference: bool) -> None:
    mode = RangeMode.reference(symmetric=symmetric) if reference else None
    spec = QuantSpec(4, PerGroup(32), symmetric=symmetric, mode=mode)
    out = fake_quantize_weight(
        torch.cat([tensor(QUANTISERS["x"])[:, :64].clamp(-9, 9), -torch.zeros(2, 64)]), spec
    )
    assert (out == 0).any()
    assert not (out.signbit() & (out == 0)).any()
