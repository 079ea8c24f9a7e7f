"""Gradients of the layer against finite differences, its surrogates, and hand-worked numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call

from cmibq import CMIBQConfig, IBQuantizedLayer
from cmibq.ops import project_bits
from cmibq.train import AlignmentHead, composite

D, E, B, T = 4, 3, 2, 3
STRAIGHT = tuple(f"layer.{n}" for n in ("encoder", "conditioner", "log_stretch", "log_variance"))
_NAMES = ("quantised", "mu", "logvar", "bit_allocation", "rate")


def made(**fields: Any) -> IBQuantizedLayer:
    """Return a layer in float64 whose networks all say something, with ranges that stay."""
    torch.manual_seed(0)
    config = CMIBQConfig(feature_dim=D, task_dim=E, hidden_dim=5, stage1_bits=3.3, **fields)
    layer = IBQuantizedLayer(config).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p) * 0.2)
        layer.quantizer.running_min.fill_(-2.5)
        layer.quantizer.running_max.fill_(2.5)
    layer.quantizer.observe = lambda x: None  # type: ignore[method-assign]
    return layer


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    shapes = ((B, T, D), (B, E))
    x, q = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    return x, q


KINDS: list[dict[str, Any]] = [
    {},
    {"mode": "task"},
    {"token_gain": True, "mode": "task"},
    {"budget": "soft"},
    {"grid": "log"},
    {"grid": "pow2"},
    {"rate": "gaussian"},
    {"costs": (1, 2, 3, 1)},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_all_but_the_straight_through_parts_equal_finite_differences(kind: dict[str, Any]) -> None:
    """Through allocation (importance, networks, gains), prior, rate, decoder and all loss terms.

    Widths lie between integers and codes stay, so there the loss is smooth.
    """
    layer, (x, q) = made(alignment_weight=0.3, beta=0.1, **kind), batch()
    whole = _Whole(layer, AlignmentHead(D, E).double())
    names = [n for n, _ in whole.named_parameters() if not n.startswith(STRAIGHT)]
    names = [n for n in names if "log_stretch" not in n]
    held = dict(whole.named_parameters())

    def loss(values: list[torch.Tensor]) -> torch.Tensor:
        layer.draws.fill_(0)
        told: torch.Tensor = functional_call(whole, dict(zip(names, values, strict=True)), (x, q))
        return told

    values = [held[n].detach().clone().requires_grad_() for n in names]
    gradients = torch.autograd.grad(loss(values), values)
    assert all(g.abs().max() > 0 for g in gradients)
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        way = [torch.randn(v.shape, generator=g, dtype=v.dtype) for v in values]
        steps = [
            loss([v + s * 1e-6 * w for v, w in zip(values, way, strict=True)]) for s in (1, -1)
        ]
        slope = float((steps[0] - steps[1]).detach()) / 2e-6
        want = sum(float((a * b).sum()) for a, b in zip(gradients, way, strict=True))
        assert slope == pytest.approx(want, rel=1e-5, abs=1e-8)


class _Whole(torch.nn.Module):
    """All loss terms of a layer together, as a forward."""

    def __init__(self, layer: IBQuantizedLayer, head: AlignmentHead) -> None:
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        r = self.layer.run(x, q)
        found = {"features": x, "text_features": q, "reconstructed": r.reconstruction}
        found |= {name: getattr(r, name) for name in _NAMES}
        terms = composite(self.layer.config, found, 3.0, alignment=self.head)
        assert terms.alignment > 0
        assert (terms.bitrate > 0) == (self.layer.config.budget == "soft")
        return terms.total


class _Run(torch.nn.Module):
    """Reconstruction and rate of a layer, as a forward."""

    def __init__(self, layer: IBQuantizedLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r = self.layer.run(x, q)
        return r.reconstruction, r.rate


def test_the_gaussian_rate_equals_finite_differences() -> None:
    """No rounding lies between the encoder and the KL."""
    layer, (x, q) = made(rate="gaussian"), batch()
    names = [n for n, _ in layer.named_parameters() if n.startswith(("encoder", "log_variance"))]
    held = dict(layer.named_parameters())

    def rate(*values: torch.Tensor) -> torch.Tensor:
        named = {f"layer.{n}": v for n, v in zip(names, values, strict=True)}
        told: torch.Tensor = functional_call(_Run(layer), named, (x, q))[1]
        return told

    values = [held[n].detach().clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(rate, values)


def test_rounding_is_straight_through() -> None:
    """The encoder gets the gradient that it would if rounding added a constant."""
    layer, (x, q) = made(), batch()
    x = x.clamp(-1, 1) * 0.5  # inside the ranges
    r = layer.run(x, q)
    (r.reconstruction - x).square().mean().backward()
    found = layer.encoder.weight.grad
    layer.zero_grad()
    mu = layer.encode(x, None)
    same = layer.decoder(mu + (r.quantised - mu).detach())
    (same - x).square().mean().backward()
    assert found is not None
    assert layer.encoder.weight.grad is not None
    assert torch.allclose(found, layer.encoder.weight.grad, atol=1e-12)


def test_values_outside_move_with_the_ends() -> None:
    """There rounding is the end itself: exact in the stretch, and nothing for the encoder."""
    layer, (x, q) = made(), batch()

    def total(stretch: torch.Tensor) -> torch.Tensor:
        told = functional_call(layer, {"quantizer.log_stretch": stretch}, (x * 1000, q))
        out: torch.Tensor = told[0]
        return out

    stretch = layer.quantizer.log_stretch.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(total, [stretch])
    layer.run(x * 1000, q).quantised.sum().backward()
    assert layer.encoder.weight.grad is not None
    assert not layer.encoder.weight.grad.any()


def test_a_layer_by_hand() -> None:
    """Identity, ends 0 and 3: 2 bits have the levels 0 1 2 3, 1 bit 0 3, so 1.5 bits the mean."""
    config = CMIBQConfig(feature_dim=2, hidden_dim=2, min_bits=1, allocator="flat")
    layer = IBQuantizedLayer(config)
    x = torch.tensor([[0.0, 3.0], [3.0, 0.0], [1.2, 2.6]])
    r = layer.run(x, target_bits=1.5)
    assert torch.allclose(r.quantised[2], torch.tensor([0.5, 3.0]))
    assert torch.equal(r.bit_allocation, torch.tensor([1.5, 1.5]))
    assert layer.prior is not None
    bits = layer.prior.tables()[:, 1:7]  # 0 1 of one bit, 0 1 2 3 of two
    want = (bits[0, 0] + bits[0, 3] + bits[1, 1] + bits[1, 5]) / 2
    assert float(r.rate[2].detach()) == pytest.approx(float(want.detach()), rel=1e-6)
    layer.eval()
    r = layer.run(x, target_bits=1.5)
    assert r.bit_allocation.tolist() == [2, 1], "the first of equals"
    assert torch.allclose(r.quantised[2], torch.tensor([1.0, 3.0]))
    assert torch.allclose(r.logvar[0].exp(), torch.tensor([1 / 12, 9 / 12]))


def test_results_do_not_depend_on_threads() -> None:
    torch.manual_seed(0)
    config = CMIBQConfig(feature_dim=96, task_dim=16, hidden_dim=64, mode="task", token_gain=True)
    layer = IBQuantizedLayer(config)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    x, q = torch.randn(4, 100, 96), torch.randn(4, 16)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            layer.load_state_dict(state)
            layer.zero_grad()
            r = layer.run(x, q, target_bits=2.7)
            (r.reconstruction.square().sum() + r.rate.sum()).backward()
            grads = [p.grad for p in layer.parameters() if p.grad is not None]
            found.append([t.detach().clone() for t in (*r, *grads)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_second_projection_is_the_identity() -> None:
    """Token gain projects a product that meets the budget already: nothing may move."""
    g = torch.Generator().manual_seed(0)
    gains = project_bits(torch.rand(2, 9, generator=g), 1.0, 0.0, 3.5)
    bits = project_bits(torch.rand(1, 16, generator=g), 2.0, 0.0, 8.0)
    product = (gains[:, :, None] * bits[:, None]).flatten(1)
    assert float(product.max()) < 8
    assert torch.allclose(project_bits(product, 2.0, 0.0, 8.0), product, atol=1e-6)
