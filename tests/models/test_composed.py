"""The composed tower: layers, outputs, and what stays untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cmibq.errors import ConfigError
from cmibq.fusion import CALMCompositionModule
from cmibq.models.composed import CALMVisionTower, leaving_out, watched
from cmibq.recipe.calm import CALMConfig, layer_indices

transformers = pytest.importorskip("transformers")


def towers() -> tuple[Any, Any]:
    torch.manual_seed(0)
    clip = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        image_size=28, patch_size=14,
    )  # fmt: skip
    dino = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=6, num_attention_heads=4, image_size=42, patch_size=14
    )
    return transformers.CLIPVisionModel(clip).eval(), transformers.Dinov2Model(dino).eval()


def oracle(module: CALMCompositionModule, x: Tensor, y: Tensor) -> Tensor:
    seen = module.projection(y)
    made, _ = module.cross_attention(x, seen, seen)
    out: Tensor = module.norm(x + made)
    return out


def test_layers() -> None:
    assert layer_indices(24, 4) == (6, 12, 18, 24)
    anchor, augmenting = towers()
    tower = CALMVisionTower(anchor, augmenting, CALMConfig(composition_layers=2))
    assert (tower.layers, tower.sources) == ((1, 3), (2, 5))


def test_layers_by_hand() -> None:
    config = CALMConfig.from_dict({"composition_layers": 2, "anchor_layers": [1, 2]})
    tower = CALMVisionTower(*towers(), config)
    assert (tower.layers, tower.sources) == ((0, 1), (2, 5))
    with pytest.raises(ConfigError, match="layer 9; 4 of the anchor"):
        CALMVisionTower(*towers(), CALMConfig(composition_layers=1, anchor_layers=(9,)))
    with pytest.raises(ConfigError, match="composition_layers = 4 rising"):
        CALMConfig(anchor_layers=(2, 1, 3, 4))


def test_equals_the_formula() -> None:
    anchor, augmenting = towers()
    config = CALMConfig(fusion_strategy="cross_attention", composition_layers=2, attention_heads=4)
    tower = CALMVisionTower(anchor, augmenting, config).eval()
    x, y = torch.randn(2, 3, 28, 28), torch.randn(2, 3, 42, 42)
    with torch.no_grad():
        states = augmenting(pixel_values=y, output_hidden_states=True).hidden_states
        h = anchor.pre_layrnorm(anchor.embeddings(x))
        for i, block in enumerate(anchor.encoder.layers):
            h = block(h, attention_mask=None)
            h = h if isinstance(h, Tensor) else h[0]
            if i in tower.layers:
                k = tower.layers.index(i)
                h = oracle(tower.calm_modules[k], h, states[tower.sources[k] + 1])
        made = tower({"anchor": x, "augmenting": y}).last_hidden_state
    torch.testing.assert_close(made, h, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", ["gated_attention", "placed_attention"])
def test_starts_as_the_anchor(strategy: str) -> None:
    anchor, augmenting = towers()
    x, y = torch.randn(2, 3, 28, 28), torch.randn(2, 3, 42, 42)
    before = anchor(x).last_hidden_state
    config = CALMConfig(composition_layers=4, fusion_strategy=strategy)
    tower = CALMVisionTower(anchor, augmenting, config)
    made = tower({"anchor": x, "augmenting": y}).last_hidden_state
    assert torch.equal(made, before)
    made.sum().backward()
    assert all(m.gate.grad is not None for m in tower.calm_modules)


def test_fusions_can_be_left_out() -> None:
    anchor, augmenting = towers()
    x, y = torch.randn(2, 3, 28, 28), torch.randn(2, 3, 42, 42)
    config = CALMConfig(fusion_strategy="cross_attention", composition_layers=2, attention_heads=4)
    tower = CALMVisionTower(anchor, augmenting, config).eval()
    given = {"anchor": x, "augmenting": y}

    def made(*numbers: int) -> Tensor:
        with torch.no_grad(), leaving_out(numbers):
            out: Tensor = tower(given).last_hidden_state
        return out

    ran: list[object] = []
    handle = augmenting.register_forward_hook(lambda *_: ran.append(None))
    assert torch.equal(made(0, 1), anchor(x).last_hidden_state)
    assert ran == []  # nobody looks at it
    assert not torch.equal(made(0), made(1))
    handle.remove()
    with leaving_out([0]):
        seen = tower(given, need_weights=True).calm
    assert list(seen.weights) == [tower.layers[1]]
    assert torch.equal(tower(given).last_hidden_state, made())


def test_passes_are_watched_where_a_host_calls_them() -> None:
    anchor, augmenting = towers()
    tower = CALMVisionTower(anchor, augmenting, CALMConfig(composition_layers=2)).eval()
    pixels = {"anchor": torch.randn(2, 3, 28, 28), "augmenting": torch.randn(2, 3, 42, 42)}
    with watched(need_weights=True) as seen:
        made = tower(pixels)
        assert [sorted(c.entropy) for c in seen] == [[1, 3]]
        assert seen[0].entropy[1].shape == (2, 8, 5)
        assert seen[0].weights[3].shape == (2, 5, 10)
        torch.testing.assert_close(seen[0].weights[3].sum(-1), torch.ones(2, 5))
    assert "calm" not in made
    tower(pixels)
    assert len(seen) == 1
