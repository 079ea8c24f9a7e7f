"""Tasks of lmms-eval: its documents, and (where it is installed) the unmodified package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from cmibq.errors import ConfigError, DataError
from cmibq.eval import evaluate, open_model
from cmibq.eval.local_task import write_task
from cmibq.eval.requests import answer_requests, likelihood_requests
from cmibq.recipe import EvalConfig

HOST = importlib.util.find_spec("lmms_eval") is not None
host = pytest.mark.skipif(not HOST, reason="needs lmms-eval in an environment of its own")


@pytest.fixture
def documents() -> dict[str, Any]:
    docs = [
        {"text": f"which {word} ?", "image": Image.new("RGB", (20 + n, 24), (40 * n, 9, 200))}
        for n, word in enumerate(("digit", "colour", "top", "left"))
    ]
    return {"toy": {"test": docs}}


def request(documents: Any, number: int, second: Any, text: str = "") -> Any:
    doc = documents["toy"]["test"][number]
    arguments = (text or doc["text"], second, lambda d: [d["image"]], number, "toy", "test")
    return SimpleNamespace(args=arguments)


def test_requests_are_answered_in_order_whatever_their_settings(
    llava_dir: Path, documents: Any
) -> None:
    loaded, _ = open_model(llava_dir)
    few, more = {"max_new_tokens": 2, "until": ["\n\n"]}, {"max_new_tokens": 5, "temperature": 0}
    asked = [request(documents, n, (few, more)[n % 2]) for n in range(4)]
    found = answer_requests(loaded, asked, documents, progress=False)
    for one, text in zip(asked, found, strict=True):
        assert answer_requests(loaded, [one], documents, progress=False) == [text]
    assert answer_requests(loaded, asked, documents, batch_size=4, progress=False) == found
    number = next(n for n, text in enumerate(found) if text)
    cut = request(documents, number, asked[number].args[1] | {"until": [found[number].split()[0]]})
    assert answer_requests(loaded, [cut], documents, progress=False) == [""]


def test_continuations_are_judged(llava_dir: Path, documents: Any) -> None:
    loaded, _ = open_model(llava_dir)
    asked = [request(documents, n, told) for n in (0, 1) for told in (" red", lambda d: "blue one")]
    found = likelihood_requests(loaded, asked, documents, batch_size=2, progress=False)
    from cmibq.data import CalibSample, Message, collate, encode

    torch.manual_seed(0)
    for (loss, greedy), one in zip(found, asked, strict=True):
        told = one.args[1] if isinstance(one.args[1], str) else "blue one"
        doc = documents["toy"]["test"][one.args[3]]
        path = llava_dir.parent / "picture.png"
        doc["image"].save(path)
        talk = (Message("user", f"<image>\n{doc['text']}"), Message("assistant", told.strip()))
        (encoded,) = encode([CalibSample((path,), talk, "x")], loaded.processor)
        batch = collate([encoded], loaded.processor)
        with torch.inference_mode():
            logits = loaded.model(**batch.model_inputs()).logits[0]  # type: ignore[operator]
        words = len(told.split())
        places = batch.answer_mask[0].nonzero()[:words, 0]
        want = logits[places - 1].log_softmax(-1)
        targets = batch.input_ids[0, places]
        assert loss == pytest.approx(-float(want.gather(1, targets[:, None]).mean()), rel=1e-4)
        assert greedy is bool((want.argmax(-1) == targets).all())


def test_documents_that_do_not_fit_are_named(llava_dir: Path, documents: Any) -> None:
    loaded, _ = open_model(llava_dir)
    two = request(documents, 1, {}, "<image> and <image> ?")
    with pytest.raises(DataError, match="task toy, document 1: 1 images but 2 <image> marks"):
        answer_requests(loaded, [two], documents, progress=False)
    documents["toy"]["test"][2]["image"] = "film.mp4"
    with pytest.raises(DataError, match="document 2: has a str; only images can be measured"):
        answer_requests(loaded, [request(documents, 2, {})], documents, progress=False)


def config(llava_dir: Path, **more: Any) -> EvalConfig:
    return EvalConfig(model_args=f"pretrained={llava_dir}", batch_size=4, **more)


@pytest.mark.skipif(HOST, reason="lmms-eval is installed")
def test_without_lmms_eval(llava_dir: Path) -> None:
    with pytest.raises(ConfigError, match="tasks needs lmms-eval, and it is not installed; pip"):
        evaluate(config(llava_dir, tasks="mmmu_val"), progress=False)


@host
@pytest.mark.filterwarnings("ignore")
def test_the_unmodified_package_measures_a_local_task(
    llava_dir: Path, items_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_task(str(items_path), str(tmp_path / "t"), name="cmibq_mine", max_new_tokens=4)
    common = {"tasks": "cmibq_mine", "include_path": str(tmp_path / "t"), "limit": 8}
    found = evaluate(
        config(
            llava_dir,
            output_path=str(tmp_path / "out"),
            log_samples=True,
            log_samples_suffix="mine",
            **common,
        ),
        progress=False,
    )
    ours = evaluate(
        EvalConfig(
            model_args=f"pretrained={llava_dir}", data_path=str(items_path), limit=8,
            metric="exact_match", max_new_tokens=4, speed_prompts=0,
        ),
        progress=False,
    )  # fmt: skip
    assert found["tasks"]["cmibq_mine"]["exact_match,none"] == ours["accuracy"]
    assert found["n_questions"] == {"cmibq_mine": 8}
    assert json.loads((tmp_path / "out" / "tasks.json").read_text())["lmms_eval"]
    names = sorted(p.name.split("_", 2)[-1] for p in (tmp_path / "out").rglob("2*"))
    assert names == ["results.json", "samples_cmibq_mine_mine.jsonl"]
    rounded = evaluate(
        config(llava_dir, pseudo_quant=True, method="rtn", w_bit=2, w_group=32, **common),
        progress=False,
    )
    assert 0 <= rounded["tasks"]["cmibq_mine"]["exact_match,none"] <= 1
    with pytest.raises(ConfigError, match="unknown task 'cmibq_min'; did you mean 'cmibq_mine'"):
        evaluate(config(llava_dir, **common | {"tasks": "cmibq_min"}), progress=False)
