"""The fusions against nn.MultiheadAttention, hand-worked values, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.errors import ConfigError
from cmibq.fusion import FUSIONS, MAPPINGS, CALMCompositionModule, build_fusion, check_fusion
from cmibq.fusion.gated_attention import GatedAttention
from cmibq.fusion.grid import grid_positions
from cmibq.fusion.placed_attention import PlacedAttention
from cmibq.fusion.simple_add import resize_tokens
from cmibq.recipe.calm import CALMConfig

HERE, THERE = 48, 40


class Seed(nn.Module):
    """CALMCompositionModule as the seed prints it."""

    def __init__(self, anchor_dim: int, augmented_dim: int, num_heads: int = 8) -> None:
        super().__init__()
        self.projection = nn.Linear(augmented_dim, anchor_dim)
        self.cross_attention = nn.MultiheadAttention(
            embed_dim=anchor_dim, num_heads=num_heads, batch_first=True
        )
        self.norm: Any = nn.LayerNorm(anchor_dim)

    def forward(self, anchor_features: Tensor, augmented_features: Tensor) -> Tensor:
        projected = self.projection(augmented_features)
        fused, _ = self.cross_attention(query=anchor_features, key=projected, value=projected)
        out: Tensor = self.norm(anchor_features + fused)
        return out


def scattered(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter values of its own: torch starts biases at zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g).to(p.dtype))
    return module


def features(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 17, HERE, generator=g), torch.randn(2, 26, THERE, generator=g)
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def gradients(module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    out = module(x, y)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    named = dict(module.named_parameters()) | {"x": x, "y": y}
    found = torch.autograd.grad(out, list(named.values()), g)
    return out, dict(zip(named, found, strict=True))


@pytest.mark.parametrize("heads", [4, 8, 12, 16])
@pytest.mark.parametrize("norm", ["post", "none"])
def test_equals_the_seed(heads: int, norm: str) -> None:
    want = scattered(Seed(HERE, THERE, heads)).double()
    if norm == "none":
        want.norm = nn.Identity()
    ours = CALMCompositionModule(HERE, THERE, heads, norm=norm)
    ours.load_state_dict(want.state_dict())
    out, grads = gradients(ours, *features())
    expected, wanted = gradients(want, *features(torch.float64))
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    assert grads.keys() == wanted.keys()
    for name, g in grads.items():
        scale = max(float(wanted[name].abs().max()), 1.0)
        torch.testing.assert_close(g.double() / scale, wanted[name] / scale, rtol=0, atol=1e-5)


def test_loads_checkpoints_of_the_seed() -> None:
    names = {n: p.shape for n, p in Seed(HERE, THERE).state_dict().items()}
    assert names == {n: p.shape for n, p in CALMCompositionModule(HERE, THERE).state_dict().items()}


def test_hand_worked() -> None:
    module = CALMCompositionModule(2, 1, 1, norm="none")
    with torch.no_grad():
        module.projection.weight.copy_(torch.tensor([[1.0], [0.0]]))
        for p in (module.projection.bias, module.cross_attention.in_proj_bias):
            p.zero_()
        module.cross_attention.in_proj_weight.copy_(torch.eye(2).repeat(3, 1))
        module.cross_attention.out_proj.weight.copy_(torch.eye(2))
    x, y = torch.tensor([[[math.sqrt(2.0), 0.0]]]), torch.tensor([[[0.0], [math.log(3.0)]]])
    seen = module.attend(x, y, need_entropy=True, need_weights=True)
    torch.testing.assert_close(seen.weights, torch.tensor([[[0.25, 0.75]]]))  # exp(0) : exp(ln 3)
    added = 0.75 * math.log(3.0)
    torch.testing.assert_close(seen.out, torch.tensor([[[math.sqrt(2.0) + added, 0.0]]]))
    nats = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    torch.testing.assert_close(seen.entropy, torch.tensor([[[nats]]]))


def test_the_gate_is_a_factor_of_what_attention_adds() -> None:
    x, y = features(torch.float64)
    gated: Any = scattered(GatedAttention(HERE, THERE, 4)).double()
    seed = Seed(HERE, THERE, 4).double()
    seed.norm = nn.Identity()
    seed.load_state_dict(gated.attention.state_dict())
    added = seed(x, y) - x
    want = x + torch.tanh(30 * gated.gate) * added
    torch.testing.assert_close(gated(x, y), want)
    names = dict(gated.named_parameters())
    g = torch.randn(want.shape, generator=torch.Generator().manual_seed(2)).double()
    _, mine = gradients(gated, x, y)
    through_seed = torch.autograd.grad(want, [gated.gate, x, y, *seed.parameters()], g)
    keys = ["gate", "x", "y", *(f"attention.{n}" for n, _ in seed.named_parameters())]
    assert set(keys) == {*names, "x", "y"}
    for name, expected in zip(keys, through_seed, strict=True):
        if name not in ("x", "y"):
            torch.testing.assert_close(mine[name], expected)


@pytest.mark.parametrize("mapping", list(MAPPINGS))
@pytest.mark.parametrize("strategy", ["gated_attention", "simple_add"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_as_the_anchor(strategy: str, mapping: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = CALMConfig(attention_heads=4, fusion_strategy=strategy, dimension_mapping=mapping)
    module = build_fusion(HERE, THERE, config)
    x, y = features(dtype)
    made = module(x, y)
    assert made.dtype == dtype
    assert torch.equal(made, x)
    with torch.no_grad():
        assert torch.equal(module(x, y), x)
    made.float().square().sum().backward()
    moved = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved, "nothing would train"
    assert strategy != "gated_attention" or moved == {"gate"}


@pytest.mark.parametrize("mapping", list(MAPPINGS))
@pytest.mark.parametrize("strategy", list(FUSIONS))
def test_every_parameter_learns(strategy: str, mapping: str) -> None:
    config = CALMConfig(attention_heads=4, fusion_strategy=strategy, dimension_mapping=mapping)
    module: Any = scattered(build_fusion(HERE, THERE, config))
    x, y = features()
    module(x, y).square().sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_attention_mapping_equals_torch() -> None:
    mapping: Any = scattered(MAPPINGS["attention"](THERE, HERE, CALMConfig(attention_heads=4)))
    _, y = features()
    p = mapping.projection(y)
    want = p + mapping.self_attention(p, p, p)[0]
    torch.testing.assert_close(mapping(y), want, rtol=1e-5, atol=1e-5)


def test_tokens_of_another_grid() -> None:
    grid = torch.arange(4.0).view(1, 4, 1)
    bigger = resize_tokens(torch.cat([torch.tensor([[[9.0]]]), grid], 1), 17)
    assert bigger[0, 0] == 9.0
    edge = bigger[0, 1:].view(4, 4)
    torch.testing.assert_close(edge[0], torch.tensor([0.0, 0.25, 0.75, 1.0]))  # half-pixel centres
    torch.testing.assert_close(edge[:, 0], torch.tensor([0.0, 0.5, 1.5, 2.0]))
    nine = torch.arange(9.0).view(1, 9, 1)
    registers = resize_tokens(torch.cat([torch.tensor([[[7.0]] + [[8.0]] * 4]), nine], 1), 10)
    assert registers.flatten().tolist() == [7.0, *range(9)]
    fewer = resize_tokens(nine, 1 + 1)  # no class token on the other side
    assert fewer.flatten().tolist() == [0.0, 4.0]
    none = resize_tokens(grid, 5)
    assert none.flatten().tolist() == [0.0, 0.0, 1.0, 2.0, 3.0]
    with pytest.raises(ConfigError, match="60 tokens are no square"):
        resize_tokens(torch.zeros(1, 19, 1), 60)


def test_refuses() -> None:
    module = CALMCompositionModule(HERE, THERE, 4)
    x, y = (t.detach() for t in features())
    for bad, what in (
        ((x[..., 1:], y), "anchor_features has width 47"),
        ((x, y[..., 1:]), "augmented_features has width 39"),
        ((x, y[:1]), "2 images, augmented_features 1"),
        ((x.int(), y), r"anchor_features is torch\.int32"),
        ((x[0], y), "anchor_features"),
    ):
        with pytest.raises(ConfigError, match=what):
            module(*bad)
    for config, what in (
        (CALMConfig(attention_heads=5), "num_heads is 5.*1, 2, 3, 4, 6, 8, 12, 16, 24, 48"),
        (CALMConfig(attention_heads=5, dimension_mapping="attention"), "num_heads is 5"),
        (CALMConfig(fusion_strategy="gated_atention"), "did you mean 'gated_attention'"),
        (CALMConfig(dimension_mapping="liner"), "did you mean 'linear'"),
    ):
        with pytest.raises(ConfigError, match=what):
            check_fusion(HERE, THERE, config)


def test_nan_is_not_hidden() -> None:
    x, y = (t.detach() for t in features())
    y[1, 3, 5] = math.nan
    for strategy in FUSIONS:
        config = CALMConfig(attention_heads=4, fusion_strategy=strategy)
        out = build_fusion(HERE, THERE, config)(x, y.repeat(1, 3, 1)[:, :17])
        assert bool(out[1].isnan().any())
        assert not bool(out[0].isnan().any())


@pytest.mark.parametrize("strategy", list(FUSIONS))
@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
    ],
)
def test_dtypes(strategy: str, given: torch.dtype, stored: torch.dtype) -> None:
    config = CALMConfig(attention_heads=4, fusion_strategy=strategy)
    module = scattered(build_fusion(HERE, THERE, config)).to(stored)
    x, y = features(given)
    made = module(x, y)
    assert made.dtype == given
    want = module.double()(x.double(), y.double())
    loss = 2e-2 if torch.bfloat16 in (given, stored) else 2e-3
    torch.testing.assert_close(made.double(), want, rtol=loss, atol=loss)


@pytest.mark.parametrize("strategy", list(FUSIONS))
def test_bfloat16_without_gradients_is_as_near(strategy: str) -> None:
    config = CALMConfig(attention_heads=4, fusion_strategy=strategy)
    module: Any = scattered(build_fusion(HERE, THERE, config))
    x, y = features(torch.bfloat16)
    want = module.double()(x.double(), y.double())
    module.float()
    with torch.no_grad():
        quick = module(x, y)
    assert quick.dtype == torch.bfloat16
    off, far = ((t.double() - want).detach().norm() for t in (module(x, y), quick))
    assert float(far) < 2 * float(off) + 1e-3
    seen = module.attend(x, y, need_entropy=True)
    assert (seen.entropy is None) == (strategy == "simple_add")


@pytest.mark.parametrize("strategy", list(FUSIONS))
def test_autocast_and_recompute(strategy: str) -> None:
    config = CALMConfig(attention_heads=4, fusion_strategy=strategy)
    module: Any = scattered(build_fusion(HERE, THERE, config))
    want, wanted = gradients(module, *features())
    module.recompute = True
    again, same = gradients(module, *features())
    assert torch.equal(again, want)
    for name, g in same.items():
        torch.testing.assert_close(g, wanted[name], rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half, coarse = gradients(module, *features())
    torch.testing.assert_close(half.float(), want, rtol=3e-2, atol=3e-2)
    assert all(bool(g.isfinite().all()) for g in coarse.values())


@pytest.mark.parametrize("strategy", list(FUSIONS))
def test_compiles_whole(strategy: str) -> None:
    config = CALMConfig(attention_heads=4, fusion_strategy=strategy)
    module: Any = scattered(build_fusion(HERE, THERE, config))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    made, grads = gradients(compiled, *features())
    want, wanted = gradients(module, *features())
    torch.testing.assert_close(made, want)
    for name, g in wanted.items():
        key = name if name in ("x", "y") else f"_orig_mod.{name}"
        torch.testing.assert_close(grads[key], g, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", list(FUSIONS))
def test_on_the_meta_device(strategy: str) -> None:
    config = CALMConfig(attention_heads=4, fusion_strategy=strategy)
    with torch.device("meta"):
        module = build_fusion(HERE, THERE, config)
        made = module(torch.randn(2, 17, HERE), torch.randn(2, 26, THERE))
    assert (made.shape, made.device.type) == ((2, 17, HERE), "meta")


def test_places_by_hand() -> None:
    """One wave of a 2 x 2 grid: rows 1/4 and 3/4 of the image, 8 half waves: sin, cos of 2 pi."""
    got = grid_positions(5, 4)
    assert got[0].tolist() == [0.0] * 4
    one = torch.tensor([0.0, 2**0.5]).repeat(2)
    torch.testing.assert_close(got[1:], one.expand(4, 4), rtol=0, atol=1e-6)
    wide = grid_positions(4 + 256, 32)[4:]  # four tokens before a 16 x 16 grid
    assert float(wide[0] @ wide[0]) == pytest.approx(32, rel=1e-5)
    waves = torch.arange(1, 9) * math.pi
    for step in (1, 2, 5):  # along a row; the cosine of a difference, summed over waves
        want = 16 + 2 * float(torch.cos(waves * step / 16).sum())
        assert float(wide[3] @ wide[3 + step]) == pytest.approx(want, abs=1e-3)
    assert grid_positions(9, 6)[:, 4:].abs().max() == 0  # 4 does not divide 6


def test_placed_attention_equals_torch() -> None:
    """Against torch's own attention, with places added by hand; grids of two sizes."""
    fusion: Any = scattered(PlacedAttention(HERE, THERE, 4))
    x, y = torch.randn(2, 10, HERE), torch.randn(2, 17, THERE)
    q = functional.layer_norm(x, (HERE,)) + grid_positions(10, HERE)
    k = functional.layer_norm(y, (THERE,)) + grid_positions(17, THERE)
    k = fusion.attention.projection(k)
    seen, weights = fusion.attention.cross_attention(q, k, k)
    want = x + torch.tanh(30 * fusion.gate) * seen
    got = fusion.attend(x, y, need_weights=True)
    torch.testing.assert_close(got.out, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.weights, weights, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="60 tokens are no square"):
        fusion(torch.randn(1, 60, HERE), y[:1])


def test_places_tell_patches_that_look_alike_apart() -> None:
    """Equal queries over equal keys: attention alone gives every patch the same."""
    x, y = torch.ones(1, 5, HERE), torch.ones(1, 17, THERE)
    y[:, 7] += torch.arange(THERE)
    for kind, alike in ((GatedAttention, True), (PlacedAttention, False)):
        got = scattered(kind(HERE, THERE, 4))(x, y)
        assert torch.allclose(got[:, 1], got[:, 4]) == alike
