"""Settled fusions: the same results from plain linear layers, also packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cmibq.fusion import FUSIONS, MAPPINGS, build_fusion
from cmibq.fusion.settled import settle
from cmibq.nn import PackedLinear, convert_
from cmibq.quant import PerChannel, QuantSpec
from cmibq.recipe.calm import CALMConfig
from tests.fusion.test_fusions import HERE, THERE, features, scattered


@pytest.mark.parametrize("mapping", list(MAPPINGS))
@pytest.mark.parametrize("strategy", list(FUSIONS))
def test_settled_is_the_same(strategy: str, mapping: str) -> None:
    config = CALMConfig(attention_heads=4, fusion_strategy=strategy, dimension_mapping=mapping)
    fusion: Any = scattered(build_fusion(HERE, THERE, config)).eval()
    x, y = (t.detach() for t in features())
    want = fusion.attend(x, y, need_entropy=True, need_weights=True)
    settled = settle(fusion)
    got = settled.attend(x, y, need_entropy=True, need_weights=True)
    torch.testing.assert_close(got.out, want.out, rtol=1e-5, atol=1e-5)
    if strategy != "simple_add":
        torch.testing.assert_close(got.entropy, want.entropy, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.weights, want.weights, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(m, nn.MultiheadAttention) for m in settled.modules())
    half = settled.bfloat16()(x.bfloat16(), y.bfloat16())
    torch.testing.assert_close(half.float(), want.out, rtol=3e-2, atol=6e-2)


@pytest.mark.parametrize("width", [2 * HERE, 2 * HERE + 8])
def test_the_projection_is_multiplied_in_where_that_is_less_work(width: int) -> None:
    fusion: Any = scattered(build_fusion(HERE, width, CALMConfig(attention_heads=4)))
    settled: Any = settle(fusion)
    assert (settled.attention.first is None) == (width == 2 * HERE)
    x, y = torch.randn(2, 5, HERE), torch.randn(2, 7, width)
    torch.testing.assert_close(settled(x, y), fusion(x, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", list(FUSIONS))
def test_packed(strategy: str, dtype: torch.dtype) -> None:
    config = CALMConfig(attention_heads=4, fusion_strategy=strategy)
    settled: Any = settle(scattered(build_fusion(HERE, THERE, config))).requires_grad_(False)
    x, y = (t.detach() for t in features())
    want = settled(x, y)
    names = [n for n, m in settled.named_modules() if isinstance(m, nn.Linear)]
    convert_(settled, {n: QuantSpec(8, PerChannel(0), symmetric=True) for n in names}, 8)
    assert all(isinstance(settled.get_submodule(n), PackedLinear) for n in names)
    got = settled(x.to(dtype), y.to(dtype))
    assert got.dtype == dtype
    assert float((got.float() - want).norm() / want.norm()) < 0.02


def test_step_zero_stays_the_anchor() -> None:
    settled: Any = settle(build_fusion(HERE, THERE, CALMConfig(attention_heads=4)))
    x, y = (t.detach() for t in features())
    assert torch.equal(settled(x, y), x)
    names = [n for n, m in settled.named_modules() if isinstance(m, nn.Linear)]
    convert_(settled, {n: QuantSpec(8, PerChannel(0), symmetric=True) for n in names}, 8)
    torch.testing.assert_close(settled(x, y), x)
