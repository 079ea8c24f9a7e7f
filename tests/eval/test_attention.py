"""Where a composed tower looks: rows sum to one, grids fit, patches are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cmibq.errors import ConfigError, ModelError
from cmibq.eval.attention import Looks, View, look
from cmibq.models.composed import CALMVisionTower, leaving_out
from cmibq.recipe.calm import CALMConfig
from tests.models.test_composed import towers


class Normalised:
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.25, 0.25, 0.25)


def composed(**fields: Any) -> CALMVisionTower:
    config = CALMConfig(composition_layers=2, attention_heads=4, **fields)
    return CALMVisionTower(*towers(), config).eval()


def pixels() -> dict[str, torch.Tensor]:
    made = torch.zeros(1, 3, 28, 28), torch.ones(1, 3, 42, 42)
    return dict(zip(("anchor", "augmenting"), made, strict=True))


def test_grids_weights_and_entropy() -> None:
    tower = composed()
    seen = look(tower, pixels(), (Normalised(), Normalised()))
    assert seen.layers == (2, 4)
    assert (seen.anchor.grid, seen.anchor.prefix) == ((2, 2), 1)
    assert (seen.augmenting.grid, seen.augmenting.prefix) == ((3, 3), 1)
    assert seen.weights.shape == (2, 5, 10)
    assert seen.entropy.shape == (2, 4, 5)
    np.testing.assert_allclose(seen.weights.sum(2), 1, atol=1e-6)
    assert (seen.entropy <= np.log(10) + 1e-6).all()
    weights, prefix = seen.of_patch(3, 0)
    assert weights.shape == (3, 3)
    assert weights.sum() + prefix == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(weights.ravel(), seen.weights[0, 4, 1:])
    assert (seen.anchor.picture == 128).all()  # 0 is grey
    assert (seen.augmenting.picture == 191).all()  # 0.5 + 0.25
    with pytest.raises(ConfigError, match=r"patch is 4; allowed are 0\.\.3"):
        seen.of_patch(4)


def test_entropy_is_that_of_the_formula() -> None:
    tower = composed(fusion_strategy="cross_attention")
    seen = look(tower, pixels())
    fusion: Any = tower.calm_modules[0]
    x, y = tower.pixels(pixels())
    anchor: Any = tower.anchor_tower
    with torch.no_grad():
        states = tower.augmenting_tower(pixel_values=y, output_hidden_states=True).hidden_states
        keys = fusion.projection(states[tower.sources[0] + 1])
        with leaving_out([0, 1]):
            hidden = anchor(x, output_hidden_states=True).hidden_states[2]
        _, told = fusion.cross_attention(hidden, keys, keys, average_attn_weights=False)
    np.testing.assert_allclose(seen.weights[0], told[0].mean(0).numpy(), atol=1e-5)
    entropy = -(told[0] * told[0].log()).sum(-1).numpy()
    np.testing.assert_allclose(seen.entropy[0], entropy, atol=1e-4)
    np.testing.assert_allclose(seen.mean_entropy()[0], entropy.mean(1), atol=1e-4)


def test_left_out_fusions_have_no_part() -> None:
    tower = composed()
    with leaving_out([1]):
        assert look(tower, pixels()).layers == (2,)
    with leaving_out([0, 1]), pytest.raises(ModelError, match="no fusion of this tower"):
        look(tower, pixels())
    two = {n: x.expand(2, -1, -1, -1) for n, x in pixels().items()}
    with pytest.raises(ConfigError, match="holds 2 images; give one"):
        look(tower, two)


def test_places_of_a_picture() -> None:
    view = View(np.zeros((4, 6, 3), np.uint8), (2, 3), 0)
    found = [view.patch_at(x, y) for x, y in ((0, 0), (0.34, 0.49), (1, 1), (-2, 0.5))]
    assert found == [0, 1, 5, 3]
    looks = Looks(view, view, (1,), np.eye(6, dtype=np.float32)[None], np.zeros((1, 2, 6)))
    weights, prefix = looks.of_patch(4)
    assert (weights[1, 1], weights.sum(), prefix) == (1, 1, 0)
    looks.entropy[0, :, 2] = -1
    assert looks.most_decided() == 2
