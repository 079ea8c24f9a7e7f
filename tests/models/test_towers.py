"""Towers of every family, as the one that looks and as the one that is looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmibq.errors import ConfigError, ModelError
from cmibq.models.composed import CALMVisionTower
from cmibq.models.towers import TOWERS, TowerKind, parts_of
from cmibq.recipe.calm import CALMConfig
from tests.models.towers import VIT, clip, dino, pixels, tower

pytest.importorskip("transformers")
TWO = CALMConfig(composition_layers=2, attention_heads=4)
GRIDS = {"dinov2_with_registers": 5, "deit": 2, "siglip_vision_model": 0}


def staged(family: str) -> bool:
    return TOWERS[family].halve is not None


@pytest.mark.parametrize("family", TOWERS)
def test_any_tower_is_looked_at(family: str) -> None:
    augmenting = tower(family)
    parts = parts_of(augmenting)
    given = pixels() | {"augmenting": torch.randn(2, 3, *parts.image_size)}
    one = CALMVisionTower(clip(), augmenting, TWO)
    seen = one.augment(given["augmenting"])
    kept: dict[int, Tensor] = {}
    for at in one.sources:

        def keep(_: nn.Module, __: Any, out: Any, at: int = at) -> None:
            kept[at] = out if isinstance(out, Tensor) else out[0]

        parts.blocks[at].register_forward_hook(keep)
    with torch.no_grad():
        states = augmenting(given["augmenting"], output_hidden_states=True).hidden_states
    for features, at in zip(seen.values(), one.sources, strict=True):
        rows, columns = parts.grids[at]
        assert features.shape == (2, parts.prefix_tokens + rows * columns, parts.widths[at])
        told = kept[at]
        if told.ndim == 4:  # row by row
            assert torch.equal(features.reshape(2, rows, columns, -1), told.permute(0, 2, 3, 1))
        else:
            assert torch.equal(features, told)
        if not staged(family) and at + 1 < parts.depth:
            assert torch.equal(features, states[at + 1])
    assert parts.prefix_tokens == GRIDS.get(family, 0 if staged(family) else 1)
    one(given).last_hidden_state.square().sum().backward()
    assert all(m.gate.grad.any() for m in one.calm_modules)


@pytest.mark.parametrize("family", TOWERS)
def test_any_tower_looks(family: str) -> None:
    anchor = tower(family).requires_grad_(False)
    parts = parts_of(anchor)
    given = pixels() | {"anchor": torch.randn(2, 3, *parts.image_size)}
    before = anchor(given["anchor"]).last_hidden_state
    one = CALMVisionTower(anchor, dino(), TWO).train()
    assert torch.equal(one(given).last_hidden_state, before)
    found = []
    for one.gradient_checkpointing in (False, True):
        one.zero_grad()
        one(given).last_hidden_state.square().sum().backward()
        found.append([m.gate.grad.clone() for m in one.calm_modules])
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*found, strict=True))
    if staged(family):
        with pytest.raises(ConfigError, match="select_layer is -2, but the anchor has stages"):
            CALMVisionTower(anchor, dino(), CALMConfig(composition_layers=2, select_layer=-2))
    assert torch.equal(one.detach()(given["anchor"]).last_hidden_state, before)


class Older(nn.Module):
    """A tower with the layout of transformers 4.37: a wrapper, and layers that give tuples."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, mask: None, output_attentions: bool) -> tuple[Tensor]:
            return (x + self.linear(x),)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        from transformers import CLIPVisionConfig

        self.config = CLIPVisionConfig(**(VIT | {"hidden_size": 8}))
        self.vision_model = nn.Module()
        self.vision_model.encoder = nn.Module()
        self.vision_model.encoder.layers = nn.ModuleList(Older.Layer() for _ in range(4))

    def forward(self, pixel_values: Tensor, **_: Any) -> Tensor:
        x = pixel_values.flatten(2).transpose(1, 2)[:, :5].repeat(1, 1, 3)[..., :8]
        for layer in self.vision_model.encoder.layers:
            x = layer(x, None, output_attentions=False)[0]
        return x


def test_layers_that_give_tuples() -> None:
    anchor, given = Older(), {"anchor": torch.randn(2, 3, 42, 42)}
    before = anchor(given["anchor"])
    given["augmenting"] = given["anchor"]
    one = CALMVisionTower(anchor, Older(), TWO).train()
    assert torch.equal(one(given), before)
    found = []
    for one.gradient_checkpointing in (False, True):
        one.zero_grad()
        one(given).square().sum().backward()
        found.append([m.gate.grad.clone() for m in one.calm_modules])
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*found, strict=True))


def test_unknown_towers() -> None:
    import transformers as hf

    resnet = hf.ResNetModel(hf.ResNetConfig(hidden_sizes=[8, 8], depths=[1, 1], embedding_size=8))
    with pytest.raises(ModelError, match=r"model_type 'resnet'.*allowed are clip.*TOWERS.register"):
        CALMVisionTower(clip(), resnet, TWO)
    with pytest.raises(ModelError, match="no Hugging Face tower; allowed are"):
        CALMVisionTower(clip(), nn.Linear(2, 2), TWO)
    siglip2 = hf.Siglip2VisionModel(
        hf.Siglip2VisionConfig(**{k: v for k, v in VIT.items() if k != "image_size"})
    )
    with pytest.raises(ModelError, match="fixed resolution, whose model_type is 'siglip'"):
        CALMVisionTower(siglip2, dino(), TWO)
    bare = clip()
    bare.encoder = nn.Module()
    with pytest.raises(ModelError, match="keeps its layers in none of"):
        CALMVisionTower(bare, dino(), TWO)


def test_a_row_makes_a_tower_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOWERS, "_parts", dict(TOWERS._parts))
    other = dino()
    other.config.model_type = "mine"
    with pytest.raises(ModelError, match="'mine', which is not known"):
        parts_of(other)
    TOWERS.register("mine")(TowerKind(blocks=("encoder.layer",), prefix=1))
    assert parts_of(other).depth == 6
