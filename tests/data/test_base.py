from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmibq.data import (
    CALIBRATIONS,
    Message,
    Picture,
    check_images,
    load_images,
    read_items,
    read_records,
)
from cmibq.data.base import to_rgb
from cmibq.data.coco import choose
from cmibq.errors import ConfigError, DataError
from cmibq.recipe import QuantRecipe

TALK = [{"from": "human", "value": "<image>\nwhich ?"}, {"from": "gpt", "value": "red"}]


def written(folder: Path, items: Any, name: str = "items.json") -> Path:
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("\n".join(i if isinstance(i, str) else json.dumps(i) for i in items))
    else:
        path.write_text(items if isinstance(items, str) else json.dumps(items))
    return path


def test_reads_lists_and_lines_alike(tmp_path: Path) -> None:
    items = [
        {"image": "a.png", "conversations": TALK, "kind": "x"},
        {"id": 7, "conversations": [{"from": "human", "value": "?"}, *TALK[1:]]},
        {"image": ["a.png", "b.png"], "conversations": [TALK[0], *TALK]},
    ]
    first = read_items(written(tmp_path, items))
    second = read_items(written(tmp_path, items, "items.jsonl"))
    assert [s.messages for s in first] == [s.messages for s in second]
    assert first[0].images == (tmp_path / "a.png",)
    assert first[0].messages == (Message("user", "<image>\nwhich ?"), Message("assistant", "red"))
    assert first[0].raw["kind"] == "x"
    assert first[1].id == "7"
    assert first[1].images == ()
    assert len(first[2].images) == 2


def test_image_folder_is_where_images_start(tmp_path: Path) -> None:
    path = written(tmp_path, [{"image": "a.png", "conversations": TALK}])
    (tmp_path / "pictures").mkdir()
    assert read_items(path, tmp_path / "pictures")[0].images == (tmp_path / "pictures" / "a.png",)
    with pytest.raises(DataError, match=r"image_folder '.*nowhere' is not a folder"):
        read_items(path, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "has no items"),
        ({}, "a dict at the top"),
        ("[\n1,\n]", "line 3"),
        (["x"], "item 0: a str"),
        ([{}], "item 0: no conversations"),
        ([{"conversations": TALK, "image": 3}], "item 0: image is 3"),
        ([{"conversations": TALK}], "item 0: 0 images but 1 <image> marks"),
        ([{"conversations": TALK[1:], "image": "a.png"}], "item 0: 1 images but 0 <image>"),
        ([{"conversations": TALK[:1], "image": "a.png"}], "item 0: no answer"),
        ([{"conversations": [*TALK, {"from": "bot", "value": ""}]}], "item 0: turn 2 is"),
        ([{"conversations": [{"from": "gpt", "value": 1}]}], "item 0: turn 0 is"),
    ],
)
def test_bad_items_are_named(tmp_path: Path, items: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_items(written(tmp_path, items))


def test_malformed_line_is_named(tmp_path: Path) -> None:
    good = {"conversations": TALK, "image": "a.png"}
    path = written(tmp_path, [good, "", '{"image": "b.png", ', good], "items.jsonl")
    with pytest.raises(DataError, match=r"items\.jsonl, line 3: not valid JSON"):
        read_items(path)


@pytest.mark.parametrize(("name", "message"), [("x.json", "is not a file"), ("", "is empty")])
def test_missing_file(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_records(name)


def test_other_suffix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"allowed: \.json, \.jsonl"):
        read_items(written(tmp_path, "x", "items.csv"))


def test_missing_and_broken_images_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not an image")
    items = [{"image": n, "conversations": TALK} for n in ("a.png", "b.png", "c.png")]
    samples = read_items(written(tmp_path, items))
    check_images(samples[:1])
    with pytest.raises(DataError, match=r"item 1: image '.*b\.png' cannot be read"):
        check_images(samples[:2])
    with pytest.raises(DataError, match=r"item 2: image '.*c\.png' does not exist"):
        check_images(samples[2:])


def test_choice_is_by_seed_and_repeats_only_as_published(items_path: Path) -> None:
    samples = read_items(items_path)
    assert choose(samples, 5, 1, False) == choose(samples, 5, 1, False)
    assert choose(samples, 5, 1, False) != choose(samples, 5, 2, False)
    assert len(choose(samples, 99, 1, False)) == len(samples)
    again = choose(samples, 99, 1, True)
    assert len(again) == 99
    assert again[len(samples)] == again[0]


def test_coco_checks_the_images_it_takes(tmp_path: Path) -> None:
    items = [{"image": f"{i}.png", "conversations": TALK} for i in range(3)]
    recipe = QuantRecipe(data_path=str(written(tmp_path, items)), n_samples=1)
    with pytest.raises(DataError, match="does not exist"):
        CALIBRATIONS["coco"].read(recipe)


def test_unknown_calibration_data_offers_names() -> None:
    with pytest.raises(ConfigError, match="did you mean 'coco'"):
        CALIBRATIONS["coc"]


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("damage", ["half", "flip"])
def test_damaged_images_are_named(tmp_path: Path, kind: str, damage: str) -> None:
    image = tmp_path / f"a.{kind}"
    Image.effect_noise((32, 32), 99).convert("RGB").save(image)
    content = bytearray(image.read_bytes())
    if damage == "half":
        del content[len(content) // 2 :]
    elif kind == "png":
        content[len(content) // 2] ^= 255
    else:
        content[:2] = b"xx"
    image.write_bytes(bytes(content))
    samples = read_items(written(tmp_path, [{"image": image.name, "conversations": TALK}]))
    with pytest.raises(DataError, match=rf"item 0: image '.*a\.{kind}' cannot be read .*replace"):
        check_images(samples)
    with pytest.raises(DataError, match=rf"image '.*a\.{kind}' cannot be read"):
        load_images([Picture(p) for p in samples[0].images], None)


def test_large_images_give_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    samples = read_items(written(tmp_path, [{"image": "a.png", "conversations": TALK}]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    check_images(samples)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match=r"a\.png' cannot be read .*exceeds limit"):
        check_images(samples)


def test_images_in_answers_are_refused(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "draw"}, {"from": "gpt", "value": "<image> here"}]
    path = written(tmp_path, [{"image": "a.png", "conversations": talk}])
    with pytest.raises(DataError, match="item 0: turn 1 has <image> in an answer"):
        read_items(path)


def test_odd_turns_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, [{"image": "a.png", "conversations": [*TALK[1:], TALK[0]]}])
    with pytest.raises(DataError, match="item 0: the last question has an image but no answer"):
        read_items(path)
    half = [{"from": "human", "value": "\ud800"}, TALK[1]]
    with pytest.raises(DataError, match="item 0: turn 0 has half a character"):
        read_items(written(tmp_path, [{"conversations": half}]))


def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    file = written(tmp_path, [{"image": "a.tiff", "conversations": TALK}])
    with pytest.raises(DataError, match=r"item 0: image .*a\.tiff.* which value is white"):
        check_images(read_items(file))
