"""The reference variant reproduces the searches of the published code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from cmibq.quant import fake_quantize_tokens
from cmibq.search import (
    SEARCHES,
    GroupCalib,
    GroupResult,
    LinearGroup,
    SearchConfig,
    TokenWeights,
)
from tests.golden.loader import load
from tests.oracles import llama

BLOCK, SEARCH, AWQ, SMOOTH = load("block"), load("block_search"), load("awq"), load("smooth")
NAMES = sorted({k.removesuffix("/losses") for k in SEARCH if k.endswith("/losses")})
INSPECT = {"qkv": "self_attn", "o": "o_proj", "gate_up": "mlp", "down": "down_proj"}


def tensor(name: str) -> Tensor:
    array = BLOCK[name]
    return torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)


def group_of(name: str) -> LinearGroup:
    prev, linears = llama.GROUPS[name]
    kind = "linear" if prev in llama.LINEARS else "norm"
    return LinearGroup(name, prev, kind, linears, INSPECT[name])


def calib(group: str, kv_heads: int, tokens: TokenWeights) -> GroupCalib:
    """Return one group of the stored layer; outputs come sample by sample."""
    w = {n: tensor(f"weight/{n}") for n in llama.LINEARS}
    w |= {n: w[n][: 16 * kv_heads].contiguous() for n in ("k_proj", "v_proj")}
    x, names = tensor(f"x/{group}"), llama.GROUPS[group][1]
    keep = tensor("attention_keep")

    def run(
        weights: Sequence[Tensor], *, input_scale: Tensor | None, act_bits: int | None
    ) -> Iterator[Tensor]:
        for i in range(len(x)):
            layout = llama.Layout(tensor("cos"), tensor("sin"), keep[i : i + 1], 16)
            seen = x[i : i + 1] if input_scale is None else x[i : i + 1] / input_scale
            seen = seen if act_bits is None else fake_quantize_tokens(seen, act_bits)
            part = dict(zip(names, weights, strict=True))
            yield llama.group_block(group, w, layout)(seen, part)[0]

    block = None if group in ("o", "down") else run
    flat = x.reshape(-1, x.shape[-1])
    return GroupCalib(group_of(group), flat, [w[n] for n in names], tokens, block)


def tokens(weighting: str, group: str, loss: str) -> TokenWeights:
    answer, vision = (tensor(f"{k}_mask").flatten() for k in ("answer", "vision"))
    if weighting == "plain":
        return TokenWeights.uniform(len(answer))
    ratio = float(BLOCK[f"ratio/{'attn' if group in ('qkv', 'o') else 'mlp'}"])
    return TokenWeights.modality(answer, vision if weighting == "reweight" else None, ratio, loss)


def check(got: GroupResult, losses: np.ndarray, best: int, group: str) -> None:
    np.testing.assert_allclose(got.losses, losses, rtol=1e-5)
    assert got.losses.index(min(got.losses)) == best
    assert got.ratio == best / 20
    np.testing.assert_allclose(got.scales, BLOCK[f"grid/{group}"][best], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_mbq(name: str) -> None:
    heads, bits, loss, weighting = name.split("/")
    act = 8 if bits.endswith("a8") else None
    cfg = SearchConfig(int(bits[1]), 32, act_bits=act, loss_mode=loss, variant="reference")
    groups = [g for g in llama.GROUPS if heads == "mha" or g != "o"]
    for i, group in enumerate(groups):
        kv = 4 if heads == "mha" else 2
        got = SEARCHES["mbq"](calib(group, kv, tokens(weighting, group, loss)), cfg)
        check(got, SEARCH[f"{name}/losses"][i], SEARCH[f"{name}/best"][i], group)


@pytest.mark.parametrize("bits", [3, 4])
def test_awq(bits: int) -> None:
    cfg = SearchConfig(bits, 32, variant="reference")
    for i, group in enumerate(llama.GROUPS):
        # Its token weights are ones whatever the calibration says.
        got = SEARCHES["awq"](calib(group, 4, tokens("reweight", group, "mse")), cfg)
        check(got, AWQ[f"w{bits}/losses"][i], AWQ[f"w{bits}/best"][i], group)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("variant", ["default", "reference"])
def test_smoothquant(alpha: float, variant: str) -> None:
    weights = [tensor(f"weight/{n}") for n in ("gate_proj", "up_proj")]
    for w in weights:
        w[:, SMOOTH["dead_weight"]] = 0
    x = torch.from_numpy(SMOOTH["act_max"])
    data = GroupCalib(group_of("gate_up"), x[None], weights, TokenWeights.uniform(1))
    got = SEARCHES["smoothquant"](data, SearchConfig(8, alpha=alpha, variant=variant))
    assert got.scales is not None
    np.testing.assert_allclose(got.scales, SMOOTH[f"a{alpha}/scale"], rtol=2.0**-21)
