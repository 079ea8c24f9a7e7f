"""A conversation: pieces are the whole answer, turns are kept, and it can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cmibq.data import Message
from cmibq.errors import ConfigError, DataError, ModelError
from cmibq.eval.generate import generate_answers, prompts
from cmibq.eval.stream import stream_answer
from cmibq.models import LoadedModel
from cmibq.serve.chat import Conversation, question_about
from cmibq.serve.opening import open_any
from tests.eval.packages import write_package
from tests.serve.composed import QUESTION, make_composed, write_composed


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "red.png"
    Image.new("RGB", (24, 20), "red").save(path)
    return path


@pytest.fixture(scope="module")
def loaded(llava_dir: Path) -> LoadedModel:
    return open_any(llava_dir)


def whole(loaded: LoadedModel, sample: Any, tokens: int) -> str:
    asked = prompts([sample], loaded.processor)
    return generate_answers(loaded, asked, max_new_tokens=tokens, progress=False)[0]


def test_pieces_are_the_answer(loaded: LoadedModel, picture: Path) -> None:
    sample = question_about(picture, QUESTION)
    pieces = list(stream_answer(loaded, sample, max_new_tokens=9))
    assert len(pieces) > 1
    assert "".join(pieces).strip() == whole(loaded, sample, 9)


def test_packages_answer_too(
    loaded: LoadedModel, llava_dir: Path, items_path: Path, picture: Path, tmp_path: Path
) -> None:
    package = open_any(write_package(llava_dir, tmp_path / "w8", items_path, bits=8).path)
    sample = question_about(picture, QUESTION)
    assert "".join(stream_answer(package, sample, max_new_tokens=5)) != ""


def test_composed_models_answer_too(llava_dir: Path, picture: Path, tmp_path: Path) -> None:
    composed = open_any(write_composed(tmp_path / "model", llava_dir))
    said = "".join(Conversation(composed, picture, max_new_tokens=8).ask(QUESTION)).strip()
    assert said == whole(make_composed(llava_dir), question_about(picture, QUESTION), 8)
    assert said != whole(open_any(llava_dir), question_about(picture, QUESTION), 8)


def test_turns_are_kept_and_forgotten(loaded: LoadedModel, picture: Path) -> None:
    talk = Conversation(loaded, picture, max_new_tokens=4)
    first = "".join(talk.ask(QUESTION)).strip()
    assert talk.said == (
        Message("user", f"<image>\n{QUESTION}"),
        Message("assistant", first),
    )
    asked = question_about(picture, "which colour ?", talk.said)
    assert "".join(talk.ask("which colour ?")).strip() == whole(loaded, asked, 4)
    assert [m.text.count("<image>") for m in talk.said] == [1, 0, 0, 0]
    talk.show(picture)
    assert talk.said == ()
    alone = Conversation(loaded, picture, max_new_tokens=4, history=False)
    list(alone.ask(QUESTION))
    assert alone.said == ()


def test_a_reader_that_leaves_stops_the_model(loaded: LoadedModel, picture: Path) -> None:
    before = threading.active_count()
    talk = Conversation(loaded, picture, max_new_tokens=80)
    pieces = talk.ask(QUESTION)
    first = next(pieces)
    pieces.close()
    assert threading.active_count() == before
    assert talk.said[-1] == Message("assistant", first.strip())


def test_errors_of_the_model_are_raised(
    loaded: LoadedModel, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Iterator[int]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(loaded.model), "generate", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        list(stream_answer(loaded, question_about(picture, QUESTION)))


def test_what_cannot_be_asked(loaded: LoadedModel, picture: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the question is empty"):
        question_about(picture, "  ")
    talk = Conversation(loaded, picture)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png' cannot be read"):
        talk.show(tmp_path / "text.png")
    assert talk.image == picture
    with pytest.raises(ModelError, match="does not exist"):
        open_any(tmp_path / "nothing")
