"""What the web demo computes, without a page."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmibq.errors import ConfigError, DataError, ModelError
from cmibq.eval.attention import View
from cmibq.models import LoadedModel
from cmibq.nn import iter_packed
from cmibq.recipe.serve import ServeConfig
from cmibq.serve.opening import open_any, open_panel
from cmibq.serve.page import CSS, answer_table, attention_text
from cmibq.serve.pictures import overlaid, with_patches
from cmibq.serve.presets import read_presets
from cmibq.serve.session import Answer, Panel, looks_at, side_by_side, stream, warm_up
from cmibq.serve.voices import composed_tower, in_eight_bits, voices_of
from tests.serve.composed import QUESTION, make_composed, write_composed, write_presets


@pytest.fixture(scope="module")
def composed(llava_dir: Path) -> LoadedModel:
    return make_composed(llava_dir)


@pytest.fixture(scope="module")
def panel(composed: LoadedModel, llava_gqa_dir: Path) -> Panel:
    other, rounded = open_any(llava_gqa_dir), in_eight_bits(composed)
    return Panel(voices_of(composed, augmenting=other, int8=rounded), 8)


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return read_presets(write_presets(tmp_path_factory.mktemp("presets")))[0].image


def said(panel: Panel, name: str, image: Path, off: Any = ()) -> str:
    voice = next(v for v in panel.voices if v.name == name)
    return [*stream(panel, voice, image, QUESTION, off)][-1]


def test_all_answer_side_by_side(panel: Panel, red: Path) -> None:
    steps = list(side_by_side(panel, red, QUESTION, expected="is is the"))
    names = [v.name for v in panel.voices]
    assert names == ["anchor", "augmenting", "composed", "composed int8"]
    texts = [text for text, found in steps if not found]
    assert len(texts) > 1
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
    text, found = steps[-1]
    assert sorted(found) == sorted(names)
    assert next(iter(found)) == "composed"  # it is what streams
    assert found["composed"].text == text == said(panel, "composed", red)
    assert all(a.ms > 0 and a.right is (a.text == "is is the") for a in found.values())
    assert next(side_by_side(panel, red, QUESTION))[1] == {}
    warm_up(panel, red, QUESTION)


def test_without_fusions_it_is_the_anchor(panel: Panel, llava_dir: Path, red: Path) -> None:
    plain = Panel(voices_of(panel.main.loaded, anchor=open_any(llava_dir)), 8)
    assert said(panel, "anchor", red) == said(plain, "anchor", red) != said(panel, "composed", red)
    assert said(panel, "composed", red, {0, 1}) == said(panel, "anchor", red)
    assert said(panel, "composed", red, {1}) != said(panel, "composed", red)
    assert said(panel, "augmenting", red, {1}) == said(panel, "augmenting", red)


def test_eight_bits_are_a_copy(composed: LoadedModel, panel: Panel, red: Path) -> None:
    rounded = panel.voices[-1].loaded
    names = [name for name, _ in iter_packed(rounded.model)]
    for part in ("language_model", "projector", "anchor_tower", "augmenting_tower", "calm_modules"):
        assert any(part in name for name in names), part
    assert not list(iter_packed(composed.model))
    image = torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        one, two = (composed_tower(x).forward(image).last_hidden_state for x in (composed, rounded))
    assert 0 < (one - two).norm() < 0.1 * one.norm()
    one, two = (looks_at(Panel(voices_of(x)), red) for x in (composed, rounded))
    np.testing.assert_allclose(one.weights[0], two.weights[0], atol=0.05)
    assert one.layers == two.layers


def test_where_it_looks(panel: Panel, red: Path) -> None:
    looks = looks_at(panel, red)
    assert looks.layers == (1, 2)
    assert (looks.anchor.grid, looks.augmenting.grid) == ((2, 2), (3, 3))
    assert looks.anchor.picture[0, 0].tolist() == [255, 255, 255]
    assert looks.anchor.picture[-1, -1].tolist() == [255, 0, 0]
    assert looks_at(panel, red, {0}).layers == (2,)
    with pytest.raises(ModelError, match="all fusions are left out"):
        looks_at(panel, red, {0, 1})
    assert "Entropy" in attention_text(looks, 3, 0)


def test_what_cannot_be_shown(llava_dir: Path, panel: Panel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no composed model: its vision tower stands alone"):
        voices_of(open_any(llava_dir))
    with pytest.raises(ConfigError, match="the question is empty"):
        list(side_by_side(panel, tmp_path / "a.png", " "))
    with pytest.raises(DataError, match=r"a\.png' does not exist"):
        list(side_by_side(panel, tmp_path / "a.png", QUESTION))


def test_folders_open_with_their_presets(llava_dir: Path, tmp_path: Path, red: Path) -> None:
    folder = write_composed(tmp_path / "model", llava_dir)
    panel, presets = open_panel(ServeConfig(model_path=str(folder), max_new_tokens=8))
    assert [v.name for v in panel.voices] == ["anchor", "composed", "composed int8"]
    assert [p.note for p in presets] == ["CALM right", "CALM wrong"]
    direct = Panel(voices_of(make_composed(llava_dir)), 8)
    assert said(panel, "composed", red) == said(direct, "composed", red)
    config = ServeConfig(model_path=str(folder), anchor_path=str(llava_dir), int8=False)
    assert [v.alone for v in open_panel(config)[0].voices] == [False, False]


def test_presets_are_checked(tmp_path: Path) -> None:
    path = write_presets(tmp_path)
    assert [p.note for p in read_presets(path)] == ["CALM right", "CALM wrong"]
    items = json.loads(path.read_text())
    for change, message in (
        ({"image": "gone.png"}, r"item 2: image '.*gone\.png' does not exist"),
        ({"question": " "}, "item 2 has no image or no question"),
        ({"tip": "x"}, "item 2 is .* write texts under image, question, answer, note"),
        ({"answer": 3}, "item 2 is .* write texts"),
    ):
        path.write_text(json.dumps([items[0], items[1] | change]))
        with pytest.raises(DataError, match=message):
            read_presets(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="write a list of objects"):
        read_presets(path)


def test_the_table_escapes_and_marks(panel: Panel) -> None:
    found = {"anchor": Answer("<b>", 12.4, False), "composed": Answer("", 3.6, True)}
    table = answer_table(panel.voices, found, "<i>")
    assert "&lt;b&gt;" in table
    assert "<b>&lt;i&gt;</b>" in table
    assert [table.count(f"class='{mark}'") for mark in ("right", "wrong")] == [1, 1]
    assert "12 ms" in table
    assert "(nothing)" in table
    assert table.count("\N{HORIZONTAL ELLIPSIS}") == 2


def test_the_style_sheet_is_whole() -> None:
    rules = CSS.split("}")
    assert rules.pop().strip() == ""
    assert all(rule.count("{") == 1 for rule in rules)


def test_pictures() -> None:
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[0, 0] = 200
    view = View(picture, (2, 4), 0)
    plain = with_patches(view)
    assert plain.shape == (216, 432, 3)
    assert (plain[5, 5] == 200).all()
    framed = with_patches(view, 5)
    changed = np.argwhere((framed != plain).any(2))
    assert changed.min(0).tolist() == [108, 108]
    assert changed.max(0).tolist() == [215, 215]
    weights = np.zeros((2, 4), np.float32)
    weights[1, 2] = 0.4
    seen = overlaid(view, weights)
    assert (seen[150, 270] == np.round(0.15 * 76.5 + 0.85 * np.array([214, 48, 0]))).all()
    assert (seen[50, 150] == 76).all()
