from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmibq.data import (
    CalibSample,
    Encoded,
    Message,
    Picture,
    batches,
    check_images,
    collate,
    encode,
    join_pixels,
    load_images,
    plan,
    read_items,
)
from cmibq.data.pileval import ROW, rows_of
from cmibq.data.texts import read_texts
from cmibq.errors import DataError
from tests.fixtures import make_processor, make_tokenizer


def talk(*turns: str, images: tuple[Path, ...] = ()) -> CalibSample:
    roles = ("user", "assistant")
    return CalibSample(images, tuple(Message(roles[i % 2], t) for i, t in enumerate(turns)), "x")


def words(processor: Any, encoded: Encoded, mask: Any) -> str:
    return processor.tokenizer.decode(encoded.ids[mask])


@pytest.mark.parametrize("chat", [True, False])
def test_batches_equal_what_the_processor_makes(items_path: Path, chat: bool) -> None:
    from PIL import Image

    processor, samples = make_processor(chat), read_items(items_path)[:6]
    encoded = encode(samples, processor)
    batch = collate(encoded, processor)
    for row, sample in enumerate(samples):
        asked, told = (m.text.replace("<image>\n", "") for m in sample.messages)
        text = f"USER: <image>\n{asked} ASSISTANT: {told}</s>"
        if chat:
            text = f"<|user|><image>{asked}<|assistant|>{told}</s>"
        with Image.open(sample.images[0]) as image:
            want = processor(text=text, images=image, return_tensors="pt")
        ids = batch.input_ids[row][batch.attention_mask[row].bool()]
        assert torch.equal(ids, want["input_ids"][0])
        assert batch.pixel_values is not None
        assert torch.equal(batch.pixel_values[batch.image_index[row]], want["pixel_values"][0])
        assert words(processor, encoded[row], encoded[row].answer) == f"{told} </s>"
        assert encoded[row].vision.sum() == 4
        prompt = slice(encoded[row].prompt_length)
        assert words(processor, encoded[row], prompt).endswith(
            "<|assistant|>" if chat else "ASSISTANT :"
        )


@pytest.mark.parametrize("chat", [True, False])
def test_every_answer_of_a_conversation_is_marked(chat: bool) -> None:
    processor = make_processor(chat)
    (encoded,) = encode([talk("which ?", "red", "and left ?", "blue one")], processor)
    assert words(processor, encoded, encoded.answer) == "red </s> blue one </s>"
    assert not encoded.vision.any()


def test_a_last_question_without_answer_is_left_out() -> None:
    processor = make_processor()
    (encoded,) = encode([talk("which ?", "red", "and left ?")], processor)
    assert words(processor, encoded, slice(None)) == "<|user|> which ? <|assistant|> red </s>"


def test_template_of_the_tokenizer_and_missing_end_token() -> None:
    processor = make_processor(chat=False)
    processor.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'].upper() + ' : ' + m['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT :' }}{% endif %}"
    )
    (encoded,) = encode([talk("which ?", "red")], processor)
    assert words(processor, encoded, slice(None)) == "USER : which ? ASSISTANT : red </s>"
    assert words(processor, encoded, encoded.answer) == "red </s>"


def test_a_template_that_loses_images_is_an_error(items_path: Path) -> None:
    processor = make_processor()
    processor.chat_template = "{{ messages[-1]['content'][-1]['text'] }}"
    with pytest.raises(DataError, match="writes 0 image tokens for 1 images"):
        encode(read_items(items_path)[:1], processor)


def test_image_places_keep_their_order(items_path: Path) -> None:
    a, b = sorted(items_path.parent.glob("images/*.png"))[:2]
    rows = [
        talk("<image> and <image>", "red", images=(b, a)),
        talk("which ?", "no"),
        talk("<image>\n?", "no", images=(b,)),
    ]
    processor = make_processor()
    batch = collate(encode(rows, processor), processor)
    assert batch.image_index.tolist() == [0, 1, 0]
    assert batch.pixel_values is not None
    assert torch.equal(
        batch.pixel_values,
        join_pixels(load_images([Picture(b), Picture(a)], processor))["pixel_values"],
    )
    assert batch.vision_mask.sum(1).tolist() == [8, 0, 4]
    assert torch.equal(batch.labels != -100, batch.answer_mask)
    assert not (batch.answer_mask & ~batch.attention_mask.bool()).any()


def test_text_alone_needs_no_pixels() -> None:
    batch = collate(encode([talk("?", "yes")], make_processor()), make_processor())
    assert batch.pixel_values is None


def test_images_that_cannot_be_decoded_are_named(tmp_path: Path, items_path: Path) -> None:
    whole = next(items_path.parent.glob("images/*.png")).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    sample = talk("<image>", "red", images=(tmp_path / "half.png",))
    with pytest.raises(DataError, match=r"half\.png' cannot be read"):
        check_images([sample])
    with pytest.raises(DataError, match=r"half\.png' cannot be read"):
        load_images([Picture(p) for p in sample.images], make_processor())


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    for i, size in enumerate([(16, 16), (24, 16)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    processor = make_processor()
    processor.image_processor.do_resize = processor.image_processor.do_center_crop = False
    with pytest.raises(DataError, match="set do_resize and size"):
        load_images([Picture(tmp_path / f"{i}.png") for i in range(2)], processor)


def test_plan_covers_all_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 100).tolist()
    made = plan(lengths, 120, 5)
    assert sorted(i for row in made for i in row) == list(range(100))
    for row in made:
        assert len(row) <= 5
        assert len(row) * max(lengths[i] for i in row) <= 120


def test_batches_hold_every_sample_once(items_path: Path) -> None:
    processor = make_processor()
    encoded = encode(read_items(items_path), processor)
    made = list(batches(encoded, processor, max_tokens=60))
    assert len(made) > 1
    assert sorted(e.sample.id for b in made for e in b.samples) == sorted(
        e.sample.id for e in encoded
    )


def test_texts_become_rows_of_512_tokens(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    long = " ".join(["red"] * 513)
    path.write_text("\n".join([" ".join(["left"] * 300), long, "", " ".join(["top"] * 300)]))
    texts, tokenizer = read_texts(str(path)), make_tokenizer()
    kept = rows_of(texts, tokenizer, 9, tail=True)
    assert [len(r) for r in kept] == [ROW, 600 - ROW]
    assert kept[0].answer.all()
    assert [len(r) for r in rows_of(texts, tokenizer, 9, tail=False)] == [ROW]
    assert [len(r) for r in rows_of(texts, tokenizer, 1, tail=True)] == [300]
    with pytest.raises(DataError, match="give no row: 1 texts"):
        rows_of(texts, tokenizer, 1, tail=False)


def test_texts_from_json(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "red"}\n"blue"\n')
    assert [s.raw["text"] for s in read_texts(str(path))] == ["red", "blue"]
    path.write_text('{"text": "red"}\n{"txt": "blue"}\n')
    with pytest.raises(DataError, match="line 2: no text"):
        read_texts(str(path))


@pytest.mark.parametrize("template", ["{% for x in %}", "{{ raise_exception('roles must swap') }}"])
def test_a_template_that_fails_names_the_item(items_path: Path, template: str) -> None:
    processor = make_processor()
    processor.chat_template = template
    with pytest.raises(DataError, match=r"item 0: the chat template .* check chat_template\.jinja"):
        encode(read_items(items_path)[:1], processor)
