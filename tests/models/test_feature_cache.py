"""Features on disk: equal bits, damage, limits, other weights, several processes."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.errors import ConfigError
from cmibq.models.composed import CALMVisionTower
from cmibq.models.feature_cache import FeatureCache
from cmibq.recipe.calm import CALMConfig
from tests.models.towers import clip, dino, pixels

pytest.importorskip("transformers")


def make(folder: Path, limit: int = 1 << 30) -> tuple[Any, FeatureCache]:
    config = CALMConfig(composition_layers=2, attention_heads=4, fusion_strategy="cross_attention")
    torch.manual_seed(0)
    tower = CALMVisionTower(clip(), dino(), config)
    tower.cache = FeatureCache(folder, limit=limit)
    return tower, tower.cache


def test_found_features_have_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    tower, cache = make(tmp_path)
    given = pixels(4)
    tower({n: x[:3] for n, x in given.items()}).last_hidden_state.sum().backward()
    assert (cache.hits, cache.misses) == (0, 3)
    with torch.no_grad():
        made = tower(given).last_hidden_state
        assert (cache.hits, cache.misses) == (3, 4)
        tower.cache = FeatureCache(tmp_path)
        assert torch.equal(
            tower({n: x.flip(0) for n, x in given.items()}).last_hidden_state.flip(0), made
        )
        assert tower.cache.misses == 0
        tower.cache = None
        torch.testing.assert_close(tower(given).last_hidden_state, made)


def test_other_weights_pixels_and_layers_are_other_features(tmp_path: Path) -> None:
    tower, cache = make(tmp_path)
    tower.augment(pixels()["augmenting"])
    tower.augment(pixels()["augmenting"] * 2)
    assert cache.hits == 0
    with torch.no_grad():
        next(tower.augmenting_tower.parameters()).mul_(2)
    tower.augment(pixels()["augmenting"])
    assert cache.hits == 0
    half = tower.augmenting_tower.bfloat16()
    tower.augment(pixels()["augmenting"].bfloat16())
    assert cache.hits == 0
    assert half.dtype == torch.bfloat16
    found = tower.augment(pixels()["augmenting"].bfloat16())
    assert cache.hits == 2
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    x = pixels()["augmenting"][0]
    assert cache.key(x, "a", (1, 5)) != cache.key(x, "a", (1, 4))


def test_damage_and_limits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tower, _ = make(tmp_path)
    want = tower.augment(pixels()["augmenting"])
    for file in tmp_path.glob("*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-3])
    made = tower.augment(pixels()["augmenting"])
    assert all(torch.equal(made[at], want[at]) for at in want)
    assert "computed again" in caplog.text
    tower.cache = FeatureCache(tmp_path)
    tower.augment(pixels()["augmenting"])
    assert tower.cache.hits == 2
    caplog.clear()
    tower.cache = FeatureCache(tmp_path, limit=4200)
    with caplog.at_level(logging.WARNING):
        tower.augment(pixels(5)["augmenting"][2:])
    assert caplog.text.count("are not kept") == 1
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2
    with pytest.raises(ConfigError, match="limit is 0"):
        FeatureCache(tmp_path, limit=0)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a file; give a folder"):
        FeatureCache(tmp_path / "file")


def fill(folder: str, start: int) -> None:
    torch.set_num_threads(1)
    cache = FeatureCache(folder)
    for i in range(start, start + 8):
        key = cache.key(torch.full((3, 2, 2), float(i % 8)), "w", (1,))
        if cache.get(key) is None:
            cache.put(key, {1: torch.full((4, 2), float(i % 8))})


def test_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=fill, args=(str(tmp_path), i)) for i in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 4
    cache = FeatureCache(tmp_path)
    for i in range(8):
        found = cache.get(cache.key(torch.full((3, 2, 2), float(i)), "w", (1,)))
        assert found is not None
        assert torch.equal(found[1], torch.full((4, 2), float(i)))
    assert len(list(tmp_path.rglob("*"))) == 8 + len({p.parent for p in tmp_path.rglob("*.safe*")})
