"""The composed demo: tiles, towers, reader, and folders of models; two steps of everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from cmibq.demo import album, composed, reader, tile_models, tiles, tower_pair
from cmibq.demo.packing import Packer
from cmibq.demo.scenes import NUMBERS, load_pool
from cmibq.errors import ModelError
from cmibq.fileio import read_json


def drawn(count: int = 12, new: float = 0.5) -> tiles.Tiles:
    rng = np.random.default_rng(3)
    return tiles.compose_tiles(load_pool("dev"), count, rng, split="dev", new=new)


def test_pictures_show_what_they_say():
    made = drawn()
    assert made.pixels.shape == (12, 32, 32, 3)
    assert ((made.digits >= 0) != (made.hues >= 0)).all()
    assert ((made.digits >= 0).sum(1) == np.where(np.arange(12) % 2, 2, 3)).all()
    assert all(len({d for d in row if d >= 0}) == sum(row >= 0) for row in made.digits)
    assert set(made.scans[made.scans >= 0].tolist()) <= set(load_pool("dev").ids.tolist())
    red, violet = 0, 5
    assert [made.values[made.hues == h].tolist()[:1] for h in (red, violet)] in (
        [[2], [7]], [[], [7]], [[2], []], [[], []],
    )  # fmt: skip


def test_questions_have_the_answers_of_the_picture():
    made, rng = drawn(), np.random.default_rng(0)
    for number in range(12):
        asked = tiles.ask(made, number, rng)
        kinds = [q.kind for q in asked]
        assert len(asked) == 4
        assert ("new" in kinds) == (number < 6)
        assert ("code" in kinds) == (number >= 6)
        for question in asked:
            if question.kind == "digit":
                place = question.text.removeprefix("which digit is at ").rstrip("?")
                at = ("top left", "top right", "bottom left", "bottom right").index(place)
                assert question.answer == NUMBERS[made.digits[number, at]]
            if question.kind == "sum":
                row = slice(0, 2) if "top" in question.text else slice(2, 4)
                assert question.answer == NUMBERS[made.digits[number, row].sum()]


def test_hues_are_equally_bright():
    grey = tower_pair.anchor_pixels(drawn().pixels).mean(1)
    made = drawn()
    rows = np.where(made.scans >= 0, np.searchsorted(load_pool("dev").ids, made.scans), -1)
    shown = [
        tiles.render(
            load_pool("dev"), rows, made.textures, hues, np.random.default_rng(8), split="dev"
        )
        for hues in (made.hues, np.full_like(made.hues, -1))
    ]
    a, b = (tower_pair.anchor_pixels(p).mean(1) for p in shown)
    assert (a - b).abs().max() < 1.5 / 255 / tower_pair.STD
    assert grey.shape == (12, 16, 16)


def test_training_never_shows_a_new_pair():
    some = tiles.compose_tiles(load_pool("train"), 40, np.random.default_rng(1), split="train")
    hued = some.hues >= 0
    beside = some.digits[:, [1, 0, 3, 2]][hued]
    assert not tiles.is_new(beside, some.hues[hued]).any()


def test_the_anchor_sees_no_hue():
    anchor: Any = tower_pair.build_anchor(0)
    tower_pair.train_anchor_(anchor, seed=0, steps=2, pictures=40)
    weight = getattr(anchor, "vision_model", anchor).embeddings.patch_embedding.weight
    assert torch.equal(weight[:, 0], weight[:, 2])


def test_models_travel_rounded():
    anchor = tower_pair.build_anchor(0)
    made = tile_models.pack({"anchor": anchor})
    again: Any = tile_models.unpack(made, "anchor", tower_pair.build_anchor(1))
    for a, b in zip(anchor.parameters(), again.parameters(), strict=True):
        step = a.detach().abs().amax() / 127
        assert (a - b).abs().max() <= step / 2 + 1e-6
    with pytest.raises(ModelError, match="do not fit"):
        tile_models.unpack(made, "anchor", reader.build_reader(0))


def test_a_settled_projector_sees_spread_one():
    torch.manual_seed(0)
    features = 5 + 3 * torch.randn(50, 4, tower_pair.WIDTH)
    projector = tile_models.make_projector()
    plain = projector[0](torch.zeros(1, tower_pair.WIDTH)).detach().clone()
    tile_models.settle_(projector, features, silent=True)
    made = projector[0](features.flatten(0, 1).mean(0, keepdim=True))
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-4)
    assert projector(features).abs().max() == 0


def test_what_ships_answers_what_it_was_trained_for():
    parts = tile_models.trained_parts()
    seen = album.make_album("dev", 60)
    for tower, projector, small, kinds, least in (
        (parts.anchor, parts.anchor_projector, True, ("digit", "sum"), 0.6),
        (parts.augmenting, parts.augmenting_projector, False, ("colour", "where"), 0.95),
    ):
        eyes = tile_models.Alone(tower, projector, small=small)
        tokens = 4 if small else 16
        right, losses = album.grade_eyes(eyes, parts.reader, seen, image_tokens=tokens)
        asked = [kind for some in seen.kinds for kind in some]
        found = [r for r, kind in zip(right, asked, strict=True) if kind in kinds]
        assert np.mean(found) > least
        assert np.isfinite(losses).all()


def test_packed_questions_count_image_tokens():
    packed = Packer(reader.tile_tokenizer(), 8).pack([[("where is red?", "top left")]])
    assert (packed.input_ids == packed.input_ids[0, 1]).sum() == 8


def test_folders_of_three_models(tmp_path):
    from cmibq.models import load

    paths = composed.write_composed_demo(tmp_path)
    before = (paths["composed"] / "demo-model.json").stat().st_mtime_ns
    composed.write_composed_demo(tmp_path)
    assert (paths["composed"] / "demo-model.json").stat().st_mtime_ns == before
    presets = read_json(paths["composed"] / "presets.json")
    assert {p["note"].endswith("wrong here") for p in presets} == {True, False}
    parts = tile_models.trained_parts()
    eyes, seen = composed.composed_eyes(parts), album.make_album("dev", 4)
    loaded: Any = load(paths["composed"]).model
    given = {"anchor": seen.anchor, "augmenting": seen.augmenting}
    with torch.no_grad():
        want = eyes(seen, torch.arange(4))
        tower, last = loaded.model.vision_tower, loaded.model.multi_modal_projector
        made = last(tower(given).last_hidden_state[:, 1:])
    torch.testing.assert_close(made, want, rtol=1e-4, atol=1e-4)
