from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cmibq.errors import ConfigError, ModelError
from cmibq.search import (
    SEARCHES,
    GroupCalib,
    LinearGroup,
    SearchConfig,
    TokenWeights,
    apply_scales_,
)
from tests.golden.loader import load
from tests.oracles import mbq

NORM = LinearGroup("qkv", "norm", "norm", ("a", "b"), "attn")
LINEAR = LinearGroup("down", "up", "linear", ("a",), "a")


def modules(bias: bool = True) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made = {
        "norm": nn.LayerNorm(8, bias=bias),
        "up": nn.Linear(5, 12, bias=bias),
        "a": nn.Linear(8, 6),
        "b": nn.Linear(8, 3),
    }
    nn.init.normal_(made["norm"].get_parameter("weight"))
    return made


def scales(n: int = 8) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(1)) * 4 + 0.1


@pytest.mark.parametrize("bias", [True, False])
def test_fusing_into_a_norm_keeps_the_function(bias: bool) -> None:
    m, x = modules(bias), torch.randn(7, 8)
    before = [m[n](m["norm"](x)) for n in "ab"]
    apply_scales_(m, NORM, scales())
    for n, want in zip("ab", before, strict=True):
        torch.testing.assert_close(m[n](m["norm"](x)), want)


@pytest.mark.parametrize("bias", [True, False])
def test_fusing_into_a_linear_scales_its_last_rows(bias: bool) -> None:
    m, x = modules(bias), torch.randn(7, 5)
    before = m["a"](m["up"](x)[:, 4:])
    first = m["up"](x)[:, :4]
    apply_scales_(m, LINEAR, scales())
    torch.testing.assert_close(m["a"](m["up"](x)[:, 4:]), before)
    assert torch.equal(m["up"](x)[:, :4], first)


def test_fusing_in_bfloat16_rounds_once() -> None:
    m = {n: v.bfloat16() for n, v in modules().items()}
    want = (m["a"].weight.float() * scales()).bfloat16()
    apply_scales_(m, LINEAR, scales())
    assert torch.equal(m["a"].weight, want)


def test_fusing_none_changes_nothing() -> None:
    m = modules()
    before = m["a"].weight.clone()
    apply_scales_(m, NORM, None)
    assert torch.equal(m["a"].weight, before)


def test_fusing_refuses_what_does_not_fit() -> None:
    m = modules()
    before = {n: v.weight.clone() for n, v in m.items()}
    with pytest.raises(ModelError, match="no module q"):
        apply_scales_(m, LinearGroup("g", "norm", "norm", ("q",), "a"), scales())
    with pytest.raises(ModelError, match="do not fit"):
        apply_scales_(m, NORM, scales(4))
    with pytest.raises(ModelError, match="finite"):
        apply_scales_(m, NORM, scales() * torch.inf)
    assert all(torch.equal(m[n].weight, w) for n, w in before.items())


def test_fusing_equals_the_published_numbers() -> None:
    golden, block = load("smooth"), load("block")
    for alpha in ("0.0", "0.5", "0.8", "1.0"):
        s = torch.from_numpy(golden[f"a{alpha}/scale"])
        norm = nn.LayerNorm(len(s), bias=False)
        linears = {}
        for n in ("gate_proj", "up_proj"):
            w = torch.from_numpy(block[f"weight/{n}"].astype(np.float32))
            linears[n] = nn.Linear(*w.T.shape, bias=False)
            linears[n].weight.data = w
        group = LinearGroup("gate_up", "norm", "norm", tuple(linears), "mlp")
        apply_scales_({"norm": norm, **linears}, group, s)
        want = golden[f"a{alpha}/norm"]
        np.testing.assert_allclose(norm.weight.detach(), want, rtol=2.0**-22)


@pytest.mark.parametrize("loss", ["mae", "mse"])
def test_modality_weights_equal_the_oracle(loss: str) -> None:
    golden = load("block")
    answer, vision = (torch.from_numpy(golden[f"{k}_mask"]) for k in ("answer", "vision"))
    for v in (vision, None):
        got = TokenWeights.modality(answer.flatten(), v if v is None else v.flatten(), 0.375, loss)
        want = mbq.token_weights(answer.shape, answer, v, 0.375, loss)
        torch.testing.assert_close(got.weight, want.flatten())
    got = TokenWeights.uniform(answer.numel())
    torch.testing.assert_close(got.weight, mbq.token_weights(answer.shape).flatten())


def test_modality_weights_without_masked_tokens_are_uniform() -> None:
    none = torch.zeros(4, dtype=torch.bool)
    got = TokenWeights.modality(none, none, 0.5, "mae")
    assert torch.equal(got.weight, TokenWeights.uniform(4).weight)


def test_modality_weights_of_one_kind_only() -> None:
    none, all_ = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    for loss in ("mae", "mse"):
        assert torch.isfinite(TokenWeights.modality(none, all_, 0.5, loss).weight).all()
        assert torch.isfinite(TokenWeights.modality(all_, none, 0.5, loss).weight).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bits", 9),
        ("bits", 0),
        ("act_bits", 1),
        ("loss_mode", "l1"),
        ("n_grid", 1),
        ("alpha", 1.5),
        ("variant", "fast"),
    ],
)
def test_config_names_what_is_wrong(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value!r}; allowed"):
        SearchConfig(**{"bits": 4, field: value})


def test_symmetric_needs_two_bits() -> None:
    with pytest.raises(ConfigError, match="bits is 1; allowed are 2"):
        SearchConfig(1, symmetric=True)


def test_group_and_calibration_are_checked() -> None:
    with pytest.raises(ConfigError, match="prev_kind"):
        LinearGroup("g", "n", "conv", ("a",), "a")
    with pytest.raises(ConfigError, match="no linear"):
        LinearGroup("g", "n", "norm", (), "a")
    x, w = torch.zeros(4, 8), torch.zeros(3, 8)
    with pytest.raises(ModelError, match="token weights"):
        GroupCalib(LINEAR, x, [w], TokenWeights.uniform(5))
    with pytest.raises(ModelError, match="2 weights for 1"):
        GroupCalib(LINEAR, x, [w, w], TokenWeights.uniform(4))
    with pytest.raises(ModelError, match=r"a: weight is \[3, 7\]"):
        GroupCalib(LINEAR, x, [w[:, :7]], TokenWeights.uniform(4))


def test_unknown_method_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="unknown search 'nope'"):
        SEARCHES["nope"]
