from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmibq.data import (
    CALIBRATIONS,
    CalibSample,
    Encoded,
    context_length,
    encode_calibration,
    few_shot,
    fitting,
    interleave,
    read_items,
)
from cmibq.data.coco import choose
from cmibq.data.join import TEXT
from cmibq.data.texts import Texts, read_texts, shuffled
from cmibq.errors import DataError
from cmibq.recipe import QuantRecipe
from tests.fixtures import WORDS, make_processor


def row(*ids: int, image: str = "") -> Encoded:
    images = (Path(image),) if image else ()
    flat = np.array(ids, np.int64)
    sample = CalibSample(images, (), f"s{ids[0]}", where=f"item {ids[0]}")
    return Encoded(flat, flat % 2 == 0, flat % 2 == 1, sample)


def numbers(made: list[Encoded]) -> list[list[int]]:
    return [e.ids.tolist() for e in made]


def test_pairs_are_joined_with_masks_and_images() -> None:
    rows = [row(1, 2, image="a"), row(3, 4, 5, image="b"), row(6), row(7)]
    made = few_shot(rows, tail=True)
    assert numbers(made) == [[1, 2, 3, 4, 5], [6, 7]]
    assert made[0].answer.tolist() == [False, True, False, True, False]
    assert made[0].vision.tolist() == [True, False, True, False, True]
    assert [p.name for p in made[0].sample.images] == ["a", "b"]
    assert made[0].sample.where == "item 1 + item 3"


def test_the_last_of_an_odd_number_stays_but_not_as_published() -> None:
    rows = [row(i) for i in range(5)]
    assert numbers(few_shot(rows, tail=True)) == [[0, 1], [2, 3], [4]]
    assert numbers(few_shot(rows, tail=False)) == [[0, 1], [2, 3]]
    texts = [row(10), row(11), row(12)]
    assert numbers(interleave(rows, texts, published=False)) == [[0, 10, 1], [2, 11, 3], [4]]
    assert numbers(interleave(rows, texts, published=True)) == [[0, 10, 1], [2, 12, 3]]
    for joining in (
        lambda: few_shot(rows[:1], tail=True),
        lambda: interleave(rows[:1], texts, published=True),
    ):
        with pytest.raises(DataError, match="joins pairs and there is 1 sample"):
            joining()


def recipe(items: Path, **more: Any) -> QuantRecipe:
    return QuantRecipe(**{"data_path": str(items), "n_samples": 4, **more})


def encoded(asked: QuantRecipe, context: int | None = None) -> list[Encoded]:
    samples = CALIBRATIONS[asked.calib_data].read(asked)
    return encode_calibration(samples, make_processor(), asked, context)


def test_few_shot_recipes(items_path: Path) -> None:
    alone = encoded(recipe(items_path))
    pairs = encoded(recipe(items_path, few_shot_format=True))
    want = [np.concatenate([alone[i].ids, alone[i + 1].ids]).tolist() for i in (0, 2)]
    assert numbers(pairs) == want
    processor = make_processor()
    from cmibq.data import collate

    batch = collate(pairs, processor)
    assert len(batch.image_index) == 4
    assert int(batch.vision_mask.sum()) == 16


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = [{"text": " ".join(rng.choice(WORDS, 500 + 2 * i))} for i in range(20)]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.parametrize("variant", ["default", "reference"])
def test_interleaved_recipes(items_path: Path, texts: Path, variant: str) -> None:
    more = {"interleave_format": True, "text_data_path": str(texts), "variant": variant}
    alone, made = encoded(recipe(items_path, variant=variant)), encoded(recipe(items_path, **more))
    tokenizer = make_processor().tokenizer
    order = np.random.default_rng(42).permutation(20)
    long = [tokenizer(read_texts(str(texts))[i].raw["text"])["input_ids"] for i in order]
    long = [ids[:TEXT] for ids in long if len(ids) > TEXT]
    places = (0, 2) if variant == "reference" else (0, 1)
    for pair, place in zip(made, places, strict=True):
        i = 2 * made.index(pair)
        assert pair.ids.tolist() == [*alone[i].ids, *long[place], *alone[i + 1].ids]
        text = slice(len(alone[i]), len(alone[i]) + TEXT)
        assert pair.answer[text].all()
        assert not pair.vision[text].any()


def test_too_few_texts_and_no_texts(items_path: Path, texts: Path, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    more = {"interleave_format": True, "n_samples": 24}
    with pytest.raises(DataError, match=r"needs 23 texts of more than 512 tokens and .* has 13"):
        encoded(recipe(items_path, variant="reference", text_data_path=str(texts), **more))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"text_data_path 'mit-han-lab/pile-val-backup' is not"):
        CALIBRATIONS["coco"].read(recipe(items_path, **more))


def test_texts_are_shuffled_as_published() -> None:
    made = [CalibSample((), (), str(i)) for i in range(7)]
    assert [s.id for s in shuffled(made, 42)] == ["3", "2", "6", "4", "1", "5", "0"]


def test_texts_are_read_when_they_are_asked_for(texts: Path, tmp_path: Path) -> None:
    path = tmp_path / "gaps.jsonl"
    path.write_text('"a"\n\n{"text": "b", "x": 1}\n"\u00e9"\n')
    found = read_texts(path)
    assert isinstance(found, Texts)
    assert [s.raw["text"] for s in found] == ["a", "b", "\u00e9"]
    assert found[1].where.endswith("gaps.jsonl, line 3")
    assert [s.raw["text"] for s in reversed(found)][:2] == [s.raw["text"] for s in found[:0:-1]]
    mixed = shuffled(found, 1)
    order = np.random.default_rng(1).permutation(3)
    assert [s.id for s in mixed] == [found[int(i)].id for i in order]
    with pytest.raises(IndexError):
        found[3]
    for line, message in (("{}", "line 2: no text"), ("{", "line 2: not valid JSON")):
        path.write_text(f'"a"\n{line}\n')
        with pytest.raises(DataError, match=message):
            read_texts(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="has no items"):
        read_texts(path)


def test_the_published_order_of_items(items_path: Path) -> None:
    samples = read_items(items_path)
    order = list(range(len(samples)))
    np.random.default_rng(42).shuffle(order)
    assert [s.id for s in choose(samples, 5, 42, True)] == [f"item-{i}" for i in order[:5]]


def test_samples_longer_than_the_context(
    items_path: Path, llava_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert context_length(llava_dir) == 128
    with pytest.raises(DataError, match=r"item \d+: \d+ tokens, and the model takes 11; shorten"):
        encoded(recipe(items_path), context=11)
    logging.getLogger("cmibq").propagate = True
    kept = encoded(recipe(items_path, bad_items="skip", n_samples=24), context=11)
    assert 0 < len(kept) < 24
    told = {m for m in caplog.messages if m.startswith("left out: ")}  # other tests add handlers
    assert len(told) == 24 - len(kept)
    with pytest.raises(DataError, match="all 24 samples are longer than the model's 3 tokens"):
        encoded(recipe(items_path, bad_items="skip", n_samples=24), context=3)
    assert fitting([row(1)], None)


def test_bad_items_are_left_out_only_when_told_to(
    items_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = json.loads(items_path.read_text())[:6]
    items[1]["image"] = "nowhere.png"
    items[2]["conversations"][1]["value"] = ""
    path = tmp_path / "items.json"
    path.write_text(json.dumps(items))
    folder = str(items_path.parent)
    with pytest.raises(DataError, match="item 2: turn 1 is an empty answer"):
        CALIBRATIONS["coco"].read(recipe(path, image_folder=folder))
    logging.getLogger("cmibq").propagate = True
    asked = recipe(path, image_folder=folder, bad_items="skip", n_samples=9)
    assert {s.id for s in CALIBRATIONS["coco"].read(asked)} == {f"item-{i}" for i in (0, 3, 4, 5)}
    assert "left out: " in caplog.text
    assert "empty answer" in caplog.text
    assert "nowhere.png' does not exist" in caplog.text
