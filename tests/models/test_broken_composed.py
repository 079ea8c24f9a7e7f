"""Mistakes around composed towers: each is told, and nothing is lost."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.errors import ConfigError, ModelError, StorageError
from cmibq.models.composed import CALMVisionTower, leaving_out
from cmibq.models.composed_processor import processors_of
from cmibq.models.feature_cache import FeatureCache
from cmibq.recipe.calm import CALMConfig
from cmibq.recipe.serve import ChatConfig
from cmibq.recipe.train_calm import CALMRecipe
from tests.models.towers import clip, dino, folders, pixels

TWO = CALMConfig(composition_layers=2, attention_heads=4)


@pytest.fixture(scope="module")
def tower() -> CALMVisionTower:
    made = CALMVisionTower(clip(), dino(), TWO)
    for value in made.calm_modules.parameters():
        value.data.normal_(std=0.5)
    return made.eval()


@pytest.mark.parametrize("numbers", [[9], [-1]])
def test_fusions_that_are_not_there_cannot_be_left_out(
    tower: CALMVisionTower, numbers: list[int]
) -> None:
    with leaving_out(numbers), pytest.raises(ConfigError, match="this composed tower has 2"):
        tower(pixels())
    with pytest.raises(ConfigError, match="whole numbers"), leaving_out(["a"]):  # type: ignore[list-item]
        pass


def test_pixels_that_are_no_batch_are_refused(tower: CALMVisionTower) -> None:
    for wrong in (None, [pixels()["anchor"]], pixels()["anchor"][0]):
        with pytest.raises(ConfigError, match="pixel_values is"):
            tower(wrong)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_heads": "4"},
        {"attention_heads": None},
        {"composition_layers": 2.0},
        {"anchor_layers": [1.5, 2], "composition_layers": 2},
        {"anchor_layers": 2},
        {"gradient_checkpointing": "no"},
        [1],
    ],
)
def test_fields_of_a_wrong_kind_are_named(fields: object) -> None:
    with pytest.raises(ConfigError):
        CALMConfig.from_dict(fields)  # type: ignore[arg-type]


def test_saving_deletes_nothing_that_is_no_composed_tower(
    tower: CALMVisionTower, tmp_path: Path
) -> None:
    own = tmp_path / "own" / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(StorageError, match=r"delete notes\.txt"):
        tower.save_pretrained(own.parent)
    assert own.read_text() == "mine"
    tower.save_pretrained(tmp_path / "whole")
    with pytest.raises(StorageError, match="delete anchor"):
        tower.save_pretrained(tmp_path / "whole", towers=False)
    tower.save_pretrained(tmp_path / "thin", towers=False)
    with pytest.raises(ModelError, match="fusions alone"):
        CALMVisionTower.from_pretrained(tmp_path / "thin")


def test_fusions_for_other_heads_are_refused(tower: CALMVisionTower, tmp_path: Path) -> None:
    places = folders(tmp_path)
    tower.save_pretrained(tmp_path / "thin", towers=False)
    other = CALMConfig(composition_layers=2, attention_heads=8)
    with pytest.raises(ModelError, match="attention_heads is 4 there and 8 here"):
        CALMVisionTower.from_pretrained(*places, other, modules=tmp_path / "thin")
    file = tmp_path / "thin" / "calm_modules.safetensors"
    with pytest.raises(ModelError, match="attention_heads is 4 there and 8 here"):
        CALMVisionTower.from_pretrained(*places, other, modules=file)


@torch.no_grad()
def test_features_of_another_precision_are_not_found(
    tower: CALMVisionTower, tmp_path: Path
) -> None:
    tower.cache = FeatureCache(tmp_path / "features")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            tower(pixels())
        made = tower(pixels()).last_hidden_state
        assert (tower.cache.hits, tower.cache.misses) == (0, 4)
    finally:
        tower.cache = None
    torch.testing.assert_close(made, tower(pixels()).last_hidden_state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("record", ["x", {"processors": "x"}, {"processors": {"anchor": {}}}])
def test_damaged_records_of_processors_are_told(record: Any) -> None:
    with pytest.raises(ModelError):
        processors_of(record)


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    for kind, more in ((ChatConfig, {"model_path": "m", "image_file": "f"}), (CALMRecipe, {})):
        with pytest.raises(ConfigError, match="seed is"):
            kind(**more, seed=2**70)  # type: ignore[arg-type]


def test_a_tower_that_recomputes_can_be_pickled(tower: CALMVisionTower) -> None:
    tower.gradient_checkpointing = True
    try:
        again = pickle.loads(pickle.dumps(tower)).train()
    finally:
        tower.gradient_checkpointing = False
    made = again(pixels()).last_hidden_state
    made.sum().backward()
    assert torch.equal(made, tower(pixels()).last_hidden_state)
    assert type(again.detach()) is type(clip())
    assert all(type(m).__module__.startswith("t") for m in again.anchor_tower.modules())
