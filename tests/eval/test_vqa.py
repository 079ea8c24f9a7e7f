from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmibq.data import encode, read_items
from cmibq.errors import ConfigError, DataError
from cmibq.eval import evaluate, open_model, read_samples
from cmibq.eval.generate import generate_answers, prompt, prompts
from cmibq.eval.local_task import write_task
from cmibq.eval.vqa import CONTRACTIONS, leave_one_out, normalise, vqa_accuracy
from cmibq.io import Package
from cmibq.recipe import EvalConfig


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("A  Cat", "cat"),
        ("none", "0"),
        ("ten dogs.", "10 dogs"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("what's", "what's"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("the", ""),
        ("yes!", "yes"),
        ("t-shirt", "t shirt"),
    ],
)
def test_answers_are_compared_as_published(text: str, want: str) -> None:
    assert normalise(text) == want


def test_normalisation_equals_that_of_lmms_eval(rng: np.random.Generator) -> None:
    module = pytest.importorskip("lmms_eval.tasks._task_utils.vqa_eval_metric")
    theirs = module.EvalAIAnswerProcessor
    assert CONTRACTIONS == theirs.CONTRACTIONS
    clean = theirs()
    parts = [*"ab1 2,.?!'-/ \n", "the ", "two ", "none", "isnt ", "yall'd've", "1,000", "3.5"]
    for _ in range(2000):
        text = "".join(rng.choice(parts, rng.integers(12)))
        flat = text.replace("\n", " ").replace("\t", " ").strip()
        assert normalise(text) == clean.process_digit_article(clean.process_punctuation(flat))


@pytest.mark.parametrize(
    ("agree", "simple", "official"),
    [(0, 0, 0), (1, 1 / 3, 0.3), (2, 2 / 3, 0.6), (3, 1, 0.9), (4, 1, 1), (10, 1, 1)],
)
def test_accuracy_of_ten_people(agree: int, simple: float, official: float) -> None:
    answers = ["cat"] * agree + ["dog"] * (10 - agree)
    assert vqa_accuracy("The cat.", answers) == pytest.approx(simple)
    assert leave_one_out("The cat.", answers) == pytest.approx(official)


def test_a_batch_generates_what_each_question_alone_does(llava_dir: Path, items_path: Path) -> None:
    loaded, _ = open_model(llava_dir)
    samples = read_items(items_path)[:7]
    asked = [prompt(e) for e in encode(samples, loaded.processor)]
    alone = generate_answers(loaded, asked, max_new_tokens=6, progress=False)
    assert generate_answers(loaded, asked, batch_size=4, max_new_tokens=6, progress=False) == alone
    assert len(set(alone)) > 1
    import dataclasses

    open_ended = [dataclasses.replace(s, messages=s.messages[:1]) for s in samples]
    again = prompts(open_ended, loaded.processor)
    assert [a.ids.tolist() for a in again] == [a.ids.tolist() for a in asked]


def measure(model: Path, items: Path, **more: Any) -> dict[str, Any]:
    config = EvalConfig(
        model_args=f"pretrained={model}", data_path=str(items), limit=6, speed_prompts=0, **more
    )
    return evaluate(config, progress=False)


def test_generated_answers_are_graded(llava_dir: Path, items_path: Path, tmp_path: Path) -> None:
    loaded, _ = open_model(llava_dir)
    samples = read_items(items_path)[:6]
    asked = [prompt(e) for e in encode(samples, loaded.processor)]
    said = generate_answers(loaded, asked, max_new_tokens=3, progress=False)
    items = json.loads(items_path.read_text())[:6]
    for number, (item, text) in enumerate(zip(items, said, strict=True)):
        item["answers"] = [text] * number + ["other"] * (10 - number)
    path = tmp_path / "items.json"
    path.write_text(json.dumps(items))
    more = {"image_folder": str(items_path.parent), "max_new_tokens": 3}
    found = measure(llava_dir, path, metric="vqa", output_path=str(tmp_path / "out"), **more)
    assert found["accuracy"] == pytest.approx((0 + 1 / 3 + 2 / 3 + 1 + 1 + 1) / 6)
    assert found["vqa_leave_one_out"] == pytest.approx((0 + 0.3 + 0.6 + 0.9 + 1 + 1) / 6)
    written = read_samples(tmp_path / "out" / "samples.jsonl")
    assert [s.generated for s in written] == said
    assert [s.score for s in written][:2] == pytest.approx([0, 1 / 3])
    exact = measure(llava_dir, path, metric="exact_match", **more)
    assert exact["accuracy"] == pytest.approx(5 / 6)


def test_a_package_generates_too(packed: Package, items_path: Path) -> None:
    found = measure(packed.path, items_path, metric="exact_match", batch_size=3)
    assert found["metric"] == "exact_match"
    assert found["reload_exact"]


def test_vqa_needs_several_answers(llava_dir: Path, items_path: Path) -> None:
    with pytest.raises(DataError, match="item 0: 1 answers, and vqa counts"):
        measure(llava_dir, items_path, metric="vqa")


def test_a_task_of_local_files(items_path: Path, tmp_path: Path) -> None:
    import yaml

    assert write_task(str(items_path), str(tmp_path / "t"), name="mine", metric="vqa") == 24
    text = (tmp_path / "t" / "mine.yaml").read_text().replace("!function", "")
    task = yaml.safe_load(text)
    assert task["task"] == "mine"
    assert task["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "t" / "mine.jsonl")
    row = json.loads((tmp_path / "t" / "mine.jsonl").read_text().splitlines()[0])
    assert Path(row["images"][0]).is_file()
    assert row["question"].startswith("<image>")
    compile((tmp_path / "t" / "utils.py").read_text(), "utils.py", "exec")
    with pytest.raises(ConfigError, match=r"name is 'a b'; allowed are letters"):
        write_task(str(items_path), str(tmp_path), name="a b")
    with pytest.raises(ConfigError, match="metric is 'f1'"):
        write_task(str(items_path), str(tmp_path), name="a", metric="f1")
