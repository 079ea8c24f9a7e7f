"""The information-bottleneck layer: shapes, budgets, frozen maps, state, bad input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from cmibq import CMIBQConfig, IBQuantizedLayer
from cmibq.alloc.whole import budget
from cmibq.errors import CmibqError, ConfigError, DataError, ModelError

D, E, B, T = 8, 4, 3, 6


def made(**fields: Any) -> IBQuantizedLayer:
    torch.manual_seed(0)
    layer = IBQuantizedLayer(CMIBQConfig(feature_dim=D, task_dim=E, hidden_dim=16, **fields))
    with torch.no_grad():  # bits that differ between samples
        for name, p in layer.named_parameters():
            if "importance" in name or "token_gain.last" in name:
                p.copy_(torch.randn_like(p) * 0.5)
    return layer


def batch(seed: int = 1, samples: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(samples, T, D, generator=g), torch.randn(samples, E, generator=g)


def stepped(layer: IBQuantizedLayer, steps: int = 2) -> IBQuantizedLayer:
    layer.train()
    for step in range(steps):
        x, q = batch(step)
        r = layer.run(x, q)
        ((r.reconstruction - x).square().mean() + 1e-3 * r.rate.mean()).backward()
    return layer


KINDS: list[dict[str, Any]] = [
    {},
    {"mode": "task"},
    {"token_gain": True},
    {"mode": "task", "token_gain": True},
    {"rate": "gaussian"},
    {"budget": "soft"},
    {"grid": "log"},
    {"grid": "pow2"},
    {"allocator": "flat"},
    {"allocator": "variance"},
    {"allocator": "reinforce"},
    {"importance": "fisher"},
    {"importance": "rollout", "stochastic_rounding": True},
    {"costs": (1, 2, 3, 1, 1, 1, 2, 1)},
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def test_the_seeds_example_runs() -> None:
    config = CMIBQConfig(
        feature_dim=64, task_dim=32, hidden_dim=1024, latent_dim=64, min_bits=2, max_bits=8,
        stage1_bits=8, stage2_bits=4,
    )  # fmt: skip
    layer = IBQuantizedLayer(config)
    x, task = torch.randn(2, 5, 64), torch.randn(2, 32)
    quantised, recon, mu, logvar, bits = layer(x, task, target_bits=None)
    assert quantised.shape == recon.shape == mu.shape == logvar.shape == x.shape
    assert bits.shape == (64,)
    assert float(bits.detach().mean()) == 8.0
    flat = layer(x[:, 0], task, target_bits=3)
    assert [tuple(t.shape) for t in flat] == [(2, 64)] * 4 + [(64,)]


@kinds
@pytest.mark.parametrize("target", [2.0, 3.3, 4.0, 7.9, 8.0])
def test_budgets(kind: dict[str, Any], target: float) -> None:
    """To 1e-5 in training; whole bits with the exact sum at evaluation, and once frozen."""
    layer, (x, q) = stepped(made(**kind)), batch(9)
    w = torch.tensor(kind.get("costs", (1,) * D), dtype=torch.float64)
    bits = layer(x, q, target_bits=target)[4].detach().double()
    assert bits.shape == ((B, D) if "task" in kind.values() or layer.token_gain else (D,))
    if layer.config.budget == "hard":
        mean = (bits * w).sum(-1) / w.sum()
        assert float((mean - target).abs().max()) < 1e-5
    assert 0 <= float(bits.min())
    assert float(bits.max()) <= 8
    layer.target_bits = target
    for _ in range(2):
        layer.eval()
        plan = layer.plan(x, q)
        spent = (plan.bits.double() * w).sum(1)
        total = budget(target, int(w.sum()))
        if plan.levels is not None:
            assert plan.levels.sum(1).tolist() == [2 * T] * B
            each = torch.tensor([budget(k * target / 2, D) for k in range(8)])
            assert torch.equal(spent.view(B, T), each[plan.levels].double())
        elif layer.config.costs:
            assert total - 2 <= float(spent) <= total
        else:
            assert spent.tolist() == [total] * len(spent)
        assert float(plan.bits.min()) >= (0 if layer.token_gain else 2)
        layer.freeze_()
        assert layer.frozen


@kinds
def test_state_round_trip_of_a_frozen_layer(kind: dict[str, Any]) -> None:
    layer, (x, q) = stepped(made(**kind)), batch(9)
    layer.target_bits = 4.3
    layer.freeze_()
    again = made(**kind)
    again.load_state_dict(layer.state_dict())
    assert again.target_bits == 4.3
    assert again.frozen
    assert torch.equal(again.maps, layer.maps)
    for one in (layer, again, copy.deepcopy(layer)):
        one.eval()
        for a, b in zip(one.run(x, q), layer.eval().run(x, q), strict=True):
            assert torch.equal(a, b)


@kinds
def test_every_parameter_is_used_in_every_forward(kind: dict[str, Any]) -> None:
    """Distributed training waits for the gradients of all; also on frozen maps."""
    layer, (x, q) = stepped(made(**kind)), batch(9)
    for _ in range(2):
        layer.zero_grad(set_to_none=True)
        r = layer.run(x, q)
        (r.reconstruction.square().mean() + r.rate.mean()).backward()
        assert [n for n, p in layer.named_parameters() if p.grad is None] == []
        layer.freeze_()


def test_frozen_maps_serve_each_sample_best() -> None:
    layer = stepped(made(mode="task", n_maps=2), 4)
    layer.target_bits = 4
    layer.freeze_()
    x, q = batch(9)
    layer.eval()
    index = layer.map_index(x, q)
    plan = layer.plan(x, q)
    assert layer.maps.dtype == torch.uint8
    assert len(layer.maps) == 2
    assert index.shape == (B,)
    assert torch.equal(layer.maps[index], plan.bits)
    assert torch.equal(layer.rows_of(layer.level_maps[index], None), plan.bits)
    wishes = layer.allocation.wishes(layer._importance(x, q)).double()
    cost = (4.0 ** (wishes[:, None] - layer.maps.double())).sum(2)
    assert torch.equal(cost.argmin(1), index)


def test_maps_are_for_one_target() -> None:
    layer = stepped(made())
    with pytest.raises(ModelError, match="freeze_"):
        layer.map_index(*batch())
    layer.target_bits = 4
    layer.freeze_()
    x, q = batch(9)
    bits = layer(x, q)[4]
    assert torch.equal(bits.detach(), layer.maps[0].float())
    assert layer(x, q, target_bits=3.5)[4].detach().frac().abs().sum() > 0, "with fractions again"
    layer.target_bits = 3
    assert not layer.frozen
    layer.freeze_()
    assert layer.frozen
    assert int(layer.maps.sum()) == 24
    layer.thaw_()
    assert not layer.frozen
    assert len(layer.maps) == 0


def test_freezing_needs_samples() -> None:
    with pytest.raises(ModelError, match="no samples"):
        made(mode="task").freeze_()


def test_none_means_the_current_target() -> None:
    layer = made(stage1_bits=7.5)
    assert layer.target_bits == 7.5
    layer.target_bits = 2.3
    assert float(layer(*batch())[4].detach().mean()) == pytest.approx(2.3, abs=1e-5)
    assert layer.bfloat16().half().target_bits == 2.3
    for bad in (1.9, 8.1, float("nan"), True, "4"):
        with pytest.raises(ConfigError, match="target_bits"):
            layer.target_bits = bad  # type: ignore[assignment]
        with pytest.raises(ConfigError, match="target_bits"):
            layer(*batch(), target_bits=bad)


@pytest.mark.parametrize("mode", ["shared", "task"])
def test_bad_input(mode: str) -> None:
    layer, (x, q) = made(mode=mode), batch()
    for bad in (torch.nan, torch.inf):
        broken = x.clone()
        broken[1, 2, 3] = bad
        with pytest.raises(DataError, match=r"features holds NaN .* 1 of 3 samples \(first: 1\)"):
            layer(broken, q)
    for shape in ((B, T, D + 1), (B, 1, T, D), (D,), (B, 0, D)):
        with pytest.raises(DataError, match="features has shape"):
            layer(torch.zeros(shape), q)
    if mode == "task":
        for task in (None, q[:2], q[:, :2], q[0]):
            with pytest.raises(DataError, match="task_embedding has shape"):
                layer(x, task)
        with pytest.raises(DataError, match="task_embedding holds NaN"):
            layer(x, q * torch.nan)
    assert not layer.quantizer.seen, "a refused batch leaves no trace"


@kinds
def test_an_empty_batch_gives_empty_results(kind: dict[str, Any]) -> None:
    layer = stepped(made(**kind))
    before = {k: v.clone() for k, v in layer.quantizer.state_dict().items()}
    for training in (True, False):
        layer.train(training)
        r = layer.run(torch.zeros(0, T, D), torch.zeros(0, E))
        assert r.reconstruction.shape == (0, T, D)
        assert r.rate.shape == (0,)
    after = layer.quantizer.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in ("running_min", "running_max"))


def test_channels_without_variance() -> None:
    layer, (x, q) = made(), batch()
    x[:, :, 3] = 1.5
    r = layer.run(x, q)
    (r.reconstruction.sum() + r.rate.sum()).backward()
    assert all(t.isfinite().all() for t in r)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in layer.parameters())
    assert torch.allclose(r.quantised[:, :, 3], torch.tensor(1.5), atol=2e-6)


@pytest.mark.parametrize("kind", [{}, {"mode": "task", "token_gain": True}], ids=str)
def test_dtypes(kind: dict[str, Any]) -> None:
    """Half precision comes back as it came, from work in float32; float64 stays."""
    layer, (x, q) = stepped(made(**kind)).eval(), batch(9)
    plain = layer.run(x.bfloat16().float(), q.bfloat16().float())
    half = layer.run(x.bfloat16(), q.bfloat16())
    assert half.quantised.dtype == half.reconstruction.dtype == torch.bfloat16
    assert half.mu.dtype == half.rate.dtype == torch.float32
    assert torch.equal(half.reconstruction, plain.reconstruction.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.run(x, q).reconstruction, layer.run(x, q).reconstruction.float())
        assert layer.run(x, q).reconstruction.dtype == torch.float32
    cast = copy.deepcopy(layer).bfloat16()
    assert torch.equal(cast.run(x, q).quantised, layer.run(x, q).quantised), "weights stay float32"
    wide = copy.deepcopy(layer).double().run(x.double(), q.double())
    assert wide.quantised.dtype == wide.rate.dtype == torch.float64
    assert torch.allclose(wide.mu.float(), layer.run(x, q).mu, atol=1e-5)


def test_a_recomputed_forward_is_the_same_step() -> None:
    """Gradient checkpointing runs a forward again inside the backward pass."""
    x, q = batch()
    grads = []
    for again in (False, True):
        layer = stepped(made(rate="gaussian", stochastic_rounding=True, mode="task"))
        layer.zero_grad()
        if again:
            y = torch.utils.checkpoint.checkpoint(layer, x, q, use_reentrant=False)[1]
        else:
            y = layer(x, q)[1]
        y.square().sum().backward()
        grads.append([p.grad for p in layer.parameters()])
        assert int(layer.draws) == 3
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_unknown_parts_are_named() -> None:
    for field, word in (("allocator", "allocation network"), ("importance", "importance")):
        with pytest.raises(CmibqError, match=f"unknown {word}"):
            made(**{field: "netwrk"})
    with pytest.raises(CmibqError, match="unknown channel grid"):
        made(grid="afine")


@pytest.mark.parametrize(
    "fields",
    [
        {"feature_dim": 0},
        {"feature_dim": True},
        {"feature_dim": 8.0},
        {"token_gain": 1},
        {"stage2_bits": 9},
        {"stage2_bits": float("nan")},
        {"stage1_bits": "4"},
        {"beta": float("nan")},
        {"beta": -1.0},
        {"gamma": True},
        {"max_bits": 4, "min_bits": 5},
        {"max_bits": 9},
        {"mode": "both"},
        {"mode": "task", "task_dim": 0},
        {"hold_start": 0.6, "hold_end": 0.6},
        {"hold_end": float("nan")},
        {"momentum": 0.0},
        {"n_maps": 257},
        {"costs": (1, 2)},
        {"costs": (1.5,) * 8},
        {"costs": (0,) * 8},
        {"grid": 3},
        {"temperature": 0},
        {"stream": 2**30},
        {"seed": 2**63},
        {"seed": None},
    ],
    ids=str,
)
def test_bad_configurations(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        CMIBQConfig(**({"feature_dim": 8, "task_dim": 4} | fields))


def test_configurations_round_trip() -> None:
    config = CMIBQConfig(feature_dim=8, costs=(1,) * 8, stage2_bits=3)
    assert CMIBQConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="min_bits"):
        CMIBQConfig.from_dict({"feature_dim": 8, "minbits": 2})
