"""Folders of composed towers: equal after a reload, and what does not fit is told early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmibq.errors import CmibqError, ConfigError, ModelError, PackageError
from cmibq.models import composed_files
from cmibq.models.composed import CALMVisionTower
from cmibq.models.composed_files import WEIGHTS, load_modules_
from cmibq.models.composed_keys import tower_state
from cmibq.recipe.calm import CALMConfig
from tests.models.towers import clip, dino, folders, pixels

pytest.importorskip("transformers")
TWO = CALMConfig(composition_layers=2, attention_heads=4)
FORK = CALMConfig(
    composition_layers=2, attention_heads=4, fusion_strategy="cross_attention", norm="none"
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return folders(tmp_path_factory.mktemp("towers"))


def opened(places: tuple[Path, Path], config: CALMConfig = TWO) -> CALMVisionTower:
    """Return a composed tower whose fusions do something."""
    tower = CALMVisionTower.from_pretrained(*places, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in tower.calm_modules.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return tower


@torch.no_grad()
def seen(tower: CALMVisionTower) -> Tensor:
    made: Tensor = tower(pixels()).last_hidden_state
    return made


def test_a_reload_gives_equal_outputs(places: tuple[Path, Path], tmp_path: Path) -> None:
    tower = opened(places)
    assert not [n for n, _ in tower.anchor_tower.named_parameters() if "text" in n]
    tower.save_pretrained(tmp_path / "whole")
    tower.save_pretrained(tmp_path / "fusions", towers=False)
    names = {p.name for p in (tmp_path / "fusions").iterdir()}
    assert names == {"calm_config.json", "calm_modules.safetensors"}
    whole = CALMVisionTower.from_pretrained(tmp_path / "whole")
    for again in (
        whole,
        CALMVisionTower.from_pretrained(tmp_path / "fusions"),
        CALMVisionTower.from_pretrained(*places, modules=tmp_path / "fusions"),
    ):
        assert torch.equal(seen(again), seen(tower))
        assert again.calm_config == tower.calm_config
        assert again.processors is not None
    whole.save_pretrained(tmp_path / "whole")
    assert torch.equal(seen(CALMVisionTower.from_pretrained(tmp_path / "whole")), seen(tower))


def test_towers_in_half_keep_float_fusions(places: tuple[Path, Path]) -> None:
    tower = CALMVisionTower.from_pretrained(*places, TWO, dtype=torch.bfloat16)
    assert (tower.dtype, tower.calm_modules[0].gate.dtype) == (torch.bfloat16, torch.float32)
    half = {n: x.bfloat16() for n, x in pixels().items()}
    with torch.no_grad():
        made = tower(half).last_hidden_state
        alone = tower.detach()(half["anchor"]).last_hidden_state
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, alone)


def as_fork(tower: CALMVisionTower) -> dict[str, Tensor]:
    """Return a state under the names of the public fork, text tower included."""
    made = {"anchor_tower.logit_scale": torch.ones(()), "anchor_tower.text_model.a": torch.ones(2)}
    for name, value in tower.state_dict().items():
        for part in ("projection", "cross_attention"):
            name = name.replace(f".{part}.", f".{part}.{part}.") if "calm_" in name else name
        if name.startswith("anchor_tower."):
            name = name.replace("anchor_tower.", "anchor_tower.vision_model.")
        made[name] = value
    return made


@pytest.mark.parametrize("layout", ["pytorch_model.bin", "model.safetensors"])
def test_checkpoints_of_the_fork(places: tuple[Path, Path], tmp_path: Path, layout: str) -> None:
    from safetensors.torch import save_file

    tower = opened(places, FORK)
    state = {n: t.clone() for n, t in as_fork(tower).items()}
    if layout == "pytorch_model.bin":
        (tmp_path / "vision_tower").mkdir()
        torch.save(state, tmp_path / "vision_tower" / layout)
    else:
        save_file(
            {f"vision_tower._vision_tower.{n}": t for n, t in state.items()}, tmp_path / layout
        )
    again = CALMVisionTower.from_pretrained(*places, FORK, modules=tmp_path)
    assert torch.equal(seen(again), seen(tower))
    fresh = CALMVisionTower(clip(), dino(), FORK).eval()
    fresh.load_state_dict(tower_state(fresh, state))
    assert torch.equal(seen(fresh), seen(tower))
    with pytest.raises(ModelError, match=r"no layer norm.*set norm to 'none'"):
        CALMVisionTower.from_pretrained(
            *places,
            CALMConfig(composition_layers=2, attention_heads=4, fusion_strategy="cross_attention"),
            modules=tmp_path,
        )


def refuse(match: str, *args: Any, **options: Any) -> None:
    with pytest.raises(CmibqError, match=match):
        CALMVisionTower.from_pretrained(*args, **options)


def test_what_does_not_fit_is_told_before_weights_are_read(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = opened(places)
    tower.save_pretrained(tmp_path / "good", towers=False)
    tower.save_pretrained(tmp_path / "cut", towers=False)
    tower.save_pretrained(tmp_path / "flip", towers=False)
    file = tmp_path / "cut" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-9])
    flip = tmp_path / "flip" / WEIGHTS
    content = bytearray(flip.read_bytes())
    content[-3] ^= 1
    flip.write_bytes(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "new").mkdir()
    head = json.loads((tmp_path / "good" / "calm_config.json").read_text())
    (tmp_path / "new" / "calm_config.json").write_text(json.dumps(head | {"format": 9}))
    with pytest.raises(PackageError, match="SHA-256 differs"):
        load_modules_(tower, tmp_path / "flip")
    monkeypatch.setattr(composed_files, "open_tower", lambda *_, **__: pytest.fail("weights read"))
    refuse("no folder of a vision tower", places[0], tmp_path / "missing")
    refuse("pass both", places[0], "")
    refuse("augmenting is None", places[0])
    refuse("truncated or damaged", *places, modules=tmp_path / "cut")
    refuse("has none of", *places, modules=tmp_path / "empty")
    refuse("newer than 1", *places, modules=tmp_path / "new")
    refuse("no calm_modules", *places, modules=places[1])
    more = CALMConfig(composition_layers=4, attention_heads=4)
    refuse(r"composition_layers = 2; this tower has 4", *places, more, modules=tmp_path / "good")
    refuse("another fusion_strategy", *places, FORK, modules=tmp_path / "good")
    refuse("another fusion_strategy.*pair", places[1], places[0], modules=tmp_path / "good")
    refuse("num_heads is 5", *places, CALMConfig(attention_heads=5))
    refuse("tower has 4 layers", *places, CALMConfig(composition_layers=5))
    head["config"]["anchor_model"] = "/nowhere"
    (tmp_path / "good" / "calm_config.json").write_text(json.dumps(head))
    refuse("names the tower '/nowhere'", tmp_path / "good")


def test_damaged_towers(places: tuple[Path, Path], tmp_path: Path) -> None:
    opened(places).save_pretrained(tmp_path / "out")
    file = tmp_path / "out" / "augmenting" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(PackageError, match=r"augmenting/model.safetensors is truncated"):
        CALMVisionTower.from_pretrained(tmp_path / "out")
    with pytest.raises(ConfigError, match="no field 'norms'"):
        CALMConfig.from_dict({"norms": 1})
