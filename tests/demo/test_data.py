from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from cmibq.demo import data, scenes
from cmibq.errors import ConfigError

VALUE = {word: number for number, word in enumerate(scenes.NUMBERS)}
SPLITS = ("train", "calib", "dev", "test")


@pytest.fixture
def small(monkeypatch):
    """Three shapes of a data set that is written in a moment; the test split is never graded."""
    monkeypatch.setattr(data, "SHAPES", {"calib": (7, 2), "dev": (7, 4), "test": (3, 4)})


def check(question, answer, digits, colours):
    """Answer a question from the scene alone, by other means than the generator."""
    hues = list(scenes.COLOURS)
    scene = {
        p: (d, hues[c]) for p, d, c in zip(scenes.PLACES, digits, colours, strict=True) if d >= 0
    }
    named = [(p, d, c) for p, (d, c) in scene.items() if c in question or p in question]
    named = named or [(p, d, c) for p, (d, c) in scene.items() if scenes.NUMBERS[d] in question]
    if "sum" in question:
        used = list(scene.values()) if "two digits" in question else [(d, c) for _, d, c in named]
        return len(used) == 2 and VALUE[answer] == sum(d for d, _ in used)
    if "larger" in question:
        return len(named) == 2 and answer == max(named, key=lambda row: row[1])[2]
    ((place, digit, hue),) = named
    if question.endswith(" even?"):
        return answer == ("yes" if digit % 2 == 0 else "no")
    if "which colour" in question:
        return answer == hue
    return answer == (place if "where" in question else scenes.NUMBERS[digit])


def test_splits_share_no_scan_and_cover_all():
    ids = {split: set(scenes.load_pool(split).ids.tolist()) for split in SPLITS}
    assert sum(map(len, ids.values())) == len(set().union(*ids.values())) == 1797
    assert {split: len(ids[split]) for split in scenes.SPLITS} == scenes.SPLITS


@pytest.mark.parametrize("split", SPLITS)
def test_digits_are_balanced(split):
    counts = np.bincount(scenes.load_pool(split).digits, minlength=10)
    assert counts.max() - counts.min() <= (9 if split == "train" else 1)


def digest(split):
    ids = scenes.load_pool(split).ids.tolist()
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:12]


def test_split_never_changes():
    # Weights that ship were trained on these scans: another split would leak test scans.
    assert digest("train") == "075c4fced9aa"
    assert digest("test") == "fca0341bf705"


def test_unknown_split_and_kind_are_refused():
    with pytest.raises(ConfigError, match="split='val'"):
        scenes.load_pool("val")
    with pytest.raises(ConfigError, match="kind='size'"):
        scenes.compose(scenes.load_pool("calib"), np.random.default_rng(0), kinds=("size",))


@pytest.mark.parametrize("augment", [False, True])
def test_every_answer_is_right(augment):
    pool, rng = scenes.load_pool("dev"), np.random.default_rng(5)
    for _ in range(200):
        picture = scenes.compose(pool, rng, augment=augment)
        for question in picture.questions:
            assert check(question.text, question.answer, picture.digits, picture.colours), question


def test_picture_shows_the_scans_in_their_tint():
    pool, rng = scenes.load_pool("dev"), np.random.default_rng(6)
    picture = scenes.compose(pool, rng, kinds=())
    shown = [place for place, digit in enumerate(picture.digits) if digit >= 0]
    for place, scan in zip(shown, picture.scans, strict=True):
        top, left = scenes.CELL * (place // 2), scenes.CELL * (place % 2)
        cell = picture.pixels[top : top + scenes.CELL, left : left + scenes.CELL].astype(float)
        tint = list(scenes.COLOURS.values())[picture.colours[place]]
        grey = cell @ tint / np.dot(tint, tint)
        original = pool.scans[pool.ids == scan][0]
        best = max(
            np.corrcoef(grey[y : y + 8, x : x + 8].ravel(), original.ravel())[0, 1]
            for y in range(3)
            for x in range(3)
        )
        # The tint and rounding to 8 bits are undone up to half a step of 255.
        assert best > 0.999
        assert picture.digits[place] == pool.digits[pool.ids == scan][0]
    for place in set(range(4)) - set(shown):
        top, left = scenes.CELL * (place // 2), scenes.CELL * (place % 2)
        assert not picture.pixels[top : top + scenes.CELL, left : left + scenes.CELL].any()


def test_items_are_llava_items(tmp_path, small):
    paths = data.make_dataset(tmp_path, n_train_images=2, progress=False)
    assert set(paths) == set(SPLITS)
    used = {}
    for split, path in paths.items():
        items = json.loads(path.read_text())
        assert len({item["id"] for item in items}) == len(items)
        for item in items:
            human, gpt = item["conversations"]
            assert (human["from"], gpt["from"]) == ("human", "gpt")
            assert human["value"].startswith("<image>\n")
            assert item["kind"] in scenes.KINDS
            with Image.open(tmp_path / item["image"]) as image:
                assert image.size == (scenes.CANVAS, scenes.CANVAS)
        names = [item["image"] for item in items]
        assert names == sorted(names)
        used[split] = {scan for item in items for scan in item["scans"]}
        assert used[split] <= set(scenes.load_pool(split).ids.tolist())
    kinds = [item["kind"] for item in json.loads(paths["dev"].read_text())]
    assert {kinds.count(kind) for kind in scenes.KINDS} == {4}


def test_data_set_is_deterministic_and_not_made_twice(tmp_path, small):
    first = data.make_dataset(tmp_path / "a", progress=False)
    second = data.make_dataset(tmp_path / "b", progress=False)
    for split in first:
        assert first[split].read_bytes() == second[split].read_bytes()
    for picture in sorted((tmp_path / "a" / "images").iterdir()):
        assert picture.read_bytes() == (tmp_path / "b" / "images" / picture.name).read_bytes()
    before = first["dev"].stat().st_mtime_ns
    data.make_dataset(tmp_path / "a", progress=False)
    assert first["dev"].stat().st_mtime_ns == before
    data.make_dataset(tmp_path / "a", seed=1, progress=False)
    assert first["dev"].read_bytes() != second["dev"].read_bytes()
    assert not list((tmp_path / "a").rglob("*.part"))


def test_full_shape_has_enough_questions():
    assert data.SHAPES["test"][0] * data.SHAPES["test"][1] >= 5000
    assert data.SHAPES["calib"][0] * data.SHAPES["calib"][1] >= 128
