from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cmibq import io
from cmibq.alloc import ALLOCATORS, Units, layer_bits, row_group_bytes
from cmibq.errors import ConfigError
from cmibq.nn import PackedLinear, convert_
from cmibq.quant import PerGroup, QuantSpec, fake_quantize_weight
from tests.io.test_package import make_source

MENU = (2, 3, 4, 8)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("rows", [16, 32, 64])
def test_bytes_are_those_of_packed_layers(rows: int, symmetric: bool) -> None:
    rng = np.random.default_rng(rows)
    shapes = [(40, 64), (128, 96), (16, 32)]
    cost = row_group_bytes(shapes, MENU, 32, rows=rows, symmetric=symmetric)
    option = rng.integers(0, len(MENU), len(cost))
    widths = layer_bits(np.array(MENU, np.uint8)[option], shapes, rows=rows)
    total = sum(
        PackedLinear(k, n, bits=bits, group_size=32, symmetric=symmetric).nbytes()
        + (-(-n // 16) if len(set(bits)) == 1 else 0)  # the widths, which one width saves
        for (n, k), bits in zip(shapes, widths, strict=True)
    )
    assert total == cost[np.arange(len(cost)), option].sum()


def test_from_errors_to_a_file_of_the_budget(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 160, bias=False), nn.Linear(160, 64, bias=False))
    with torch.no_grad():
        model[0].weight[:48] *= 20
    shapes, names = [(160, 128), (64, 160)], ("0", "1")

    def error(w: torch.Tensor, bits: int) -> list[float]:
        lost = (fake_quantize_weight(w, QuantSpec(bits, PerGroup(32))) - w).square().sum(1)
        return [float(part.sum()) for part in lost.split(16)]

    table = [np.array([error(m.weight.detach(), b) for b in MENU], np.float32).T for m in model]
    cost = row_group_bytes(shapes, MENU, 32)
    budget = int(cost[:, 1].sum())
    found = ALLOCATORS["exact"](
        Units(MENU, np.ascontiguousarray(np.concatenate(table)), cost), budget
    )
    specs = [QuantSpec(bits, PerGroup(32)) for bits in layer_bits(found.bits, shapes)]
    weights = [m.weight.detach().clone() for m in model]
    convert_(model, dict(zip(names, specs, strict=True)))
    lost = sum(
        float((m.dequantize() - w).square().sum()) for m, w in zip(model, weights, strict=True)
    )
    assert lost == pytest.approx(found.distortion, rel=1e-4)
    assert lost < 0.3 * sum(t[:, 1].sum() for t in table)  # 3 bits everywhere
    saved = io.save(model, make_source(tmp_path / "s"), tmp_path / "p", recipe={})
    assert saved.manifest.packed_bytes <= found.cost <= budget
    assert (tmp_path / "p" / "cmibq.safetensors").stat().st_size < budget + 1000


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="rows is 8; packed layers change their bits every 16"):
        row_group_bytes([(40, 64)], MENU, 32, rows=8)
    with pytest.raises(ConfigError, match=r"bits is \(2,\); the layers have 3 groups of 16 rows"):
        layer_bits(np.array([2, 3], np.uint8), [(40, 64)])
    with pytest.raises(ConfigError, match="a group must divide"):
        row_group_bytes([(40, 64)], MENU, 24)
