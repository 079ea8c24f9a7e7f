from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from cmibq.demo import grading, model, packing, scenes, training
from cmibq.demo.data import compose_split
from cmibq.errors import ConfigError, ModelError


@pytest.fixture(scope="module")
def shipped():
    return model.load_demo_model()


@pytest.fixture(scope="module")
def processor():
    return model.build_processor()


@pytest.fixture(scope="module")
def pictures():
    return compose_split("dev", (8, 7))


@pytest.fixture(scope="module")
def packed(pictures):
    return packing.Packer().pack([[(q.text, q.answer) for q in p.questions] for p in pictures])


def ask(processor, text):
    content = [{"type": "image"}, {"type": "text", "text": f"\n{text}"}]
    chat = [{"role": "user", "content": content}]
    return processor.apply_chat_template(chat, add_generation_prompt=True)


@torch.no_grad()
def logits_of(net, packed, pictures):
    pixels = grading.to_pixel_values([picture.pixels for picture in pictures])
    return net(
        input_ids=packed.input_ids,
        pixel_values=pixels,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
    ).logits


def test_every_word_is_in_the_vocabulary():
    tokenizer, rng = model.build_tokenizer(), np.random.default_rng(0)
    pool = scenes.load_pool("train")
    for _ in range(300):
        for question in scenes.compose(pool, rng).questions:
            ids = tokenizer(f"{question.text} {question.answer}").input_ids
            assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(tokenizer("top left").input_ids) == "top left"


def test_processor_expands_the_picture(processor, pictures):
    prompt = ask(processor, "which digit is red?")
    assert prompt == "<|user|><image>\nwhich digit is red?<|assistant|>"
    images = [Image.fromarray(picture.pixels) for picture in pictures]
    batch = processor(text=[prompt] * len(images), images=images, return_tensors="pt")
    expected = grading.to_pixel_values([picture.pixels for picture in pictures])
    # Both scale by 1/255 and normalise in float32: a few roundings of values up to 3.6.
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=4e-6)
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (batch["input_ids"] == image_id).sum(1).tolist() == [model.IMAGE_TOKENS] * len(images)


def test_chat_template_ends_an_answer(processor):
    talk = [{"role": "user", "content": "hm"}, {"role": "assistant", "content": "seven"}]
    assert processor.apply_chat_template(talk) == "<|user|>hm<|assistant|>seven</s>"


def test_build_model_is_seeded_and_leaves_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (model.build_model(seed).state_dict() for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_sizes_suit_grouped_quantisation():
    text = model.build_model(0).config.text_config
    assert text.hidden_size % 64 == 0
    assert text.intermediate_size % 128 == 0


def test_packed_questions_equal_single_ones(shipped, pictures, packed):
    together = logits_of(shipped, packed, pictures)
    for row, picture in enumerate(pictures[:3]):
        for number, question in enumerate(picture.questions):
            alone = packing.Packer().pack([[(question.text, question.answer)]])
            single = logits_of(shipped, alone, [picture])[0, alone.questions[0] == 0]
            mine = together[row, packed.questions[row] == number]
            # Logits reach about 20; sums of a few hundred float32 terms in another order.
            torch.testing.assert_close(mine, single, rtol=0, atol=1e-4)


def test_labels_are_the_next_tokens(packed):
    tokenizer = model.build_tokenizer()
    for row in range(len(packed.input_ids)):
        for number in range(7):
            told = packed.labels[row, packed.questions[row] == number].tolist()
            assert told[-1] == tokenizer.eos_token_id
            at = (packed.questions[row] == number).nonzero()[:, 0]
            assert packed.input_ids[row, at[1:]].tolist() == told[:-1]


@pytest.mark.parametrize("seed", [0, 1])
def test_planting_keeps_the_logits_and_can_be_undone(shipped, pictures, packed, seed):
    before, net = logits_of(shipped, packed, pictures), model.load_demo_model()
    factors = model.plant_outliers_(net, seed=seed)
    assert len(factors) == 2 * net.config.text_config.num_hidden_layers
    for values in factors.values():
        planted = [value for value in values if value != 1.0]
        assert len(planted) == len(values) // 4
        assert 2 <= min(planted) < max(planted) <= 64
    torch.testing.assert_close(logits_of(net, packed, pictures), before, rtol=0, atol=1e-3)
    model.undo_outliers_(net, factors)
    for name, value in shipped.state_dict().items():
        # Times a factor and divided by it: two roundings.
        torch.testing.assert_close(net.state_dict()[name], value, rtol=4e-7, atol=0)
    with pytest.raises(ConfigError, match="do not fit"):
        model.undo_outliers_(net, {"norm": [1.0]})


def test_planting_is_drawn_once_per_seed(shipped):
    first, again = (model.plant_outliers_(model.load_demo_model(), seed=4) for _ in range(2))
    assert first == again


def test_model_folder_answers_through_the_ordinary_classes(tmp_path, pictures):
    folder = model.write_model_dir(tmp_path / "m", planted=True)
    net = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(net).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert len(json.loads((folder / model.PLANTED_FACTORS).read_text())) == 8
    asked = [(p, q) for p in pictures for q in p.questions]
    batch = processor(
        text=[ask(processor, q.text) for _, q in asked],
        images=[Image.fromarray(p.pixels) for p, _ in asked],
        padding=True,
        return_tensors="pt",
    )
    told = net.generate(**batch, max_new_tokens=4, do_sample=False)
    words = processor.batch_decode(told[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    generated = [word == q.answer for word, (_, q) in zip(words, asked, strict=True)]
    pairs = [(p.pixels, [(q.text, q.answer) for q in p.questions]) for p in pictures]
    # Greedy decoding gives the answer exactly when the graded, teacher-forced tokens do.
    assert generated == grading.grade(net, pairs)[0]
    assert np.mean(generated) > 0.9


def test_shipped_weights_are_small_and_recorded():
    record = json.loads((model.WEIGHTS / "training.json").read_text())
    assert (model.WEIGHTS / "model.safetensors").stat().st_size <= 8e6
    assert record["dev"]["accuracy"] > 0.95
    assert {"seed", "steps", "wall_seconds", "threads", "versions", "sha256"} <= set(record)


def test_damaged_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(ModelError, match="demo --train"):
        model.load_demo_model()
    shutil.copytree(training.__file__.replace("training.py", "weights"), tmp_path / "weights")
    path = tmp_path / "weights" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(ModelError, match="sha256"):
        model.load_demo_model()


def test_training_writes_weights_and_record(tmp_path):
    threads = torch.get_num_threads()
    first = training.train(tmp_path / "a", seed=2, steps=2, threads=1)
    second = training.train(tmp_path / "b", seed=2, steps=2, threads=1)
    assert torch.get_num_threads() == threads
    assert first["sha256"] == second["sha256"]
    assert json.loads((tmp_path / "a" / "training.json").read_text()) == first
    assert first["dev"]["questions"] == 1600
    assert set(first["dev"]["by_kind"]) == set(scenes.KINDS)


def test_evaluate_reads_items(tmp_path, shipped, pictures):
    (tmp_path / "images").mkdir()
    items = []
    for number, picture in enumerate(pictures):
        name = f"images/{number}.png"
        Image.fromarray(picture.pixels).save(tmp_path / name)
        for q in picture.questions:
            talk = [{"from": "human", "value": f"<image>\n{q.text}"}]
            talk.append({"from": "gpt", "value": q.answer})
            items.append({"image": name, "conversations": talk, "kind": q.kind})
    report = training.evaluate(shipped, items, tmp_path)
    pairs = [(p.pixels, [(q.text, q.answer) for q in p.questions]) for p in pictures]
    assert report["correct"] == grading.grade(shipped, pairs)[0]
    assert report["questions"] == len(items) == 56


def test_restart_sets_the_heap_once(monkeypatch):
    calls = []
    monkeypatch.setattr(training.sys, "platform", "linux")
    monkeypatch.setattr(training.os, "execve", lambda *call: calls.append(call))
    for key in training.HEAP_SETTINGS:
        monkeypatch.delenv(key, raising=False)
    training.restart_with_heap_settings()
    assert training.HEAP_SETTINGS.items() <= calls[0][2].items()
    monkeypatch.setenv("CMIBQ_RESTARTED", "1")
    training.restart_with_heap_settings()
    assert len(calls) == 1
