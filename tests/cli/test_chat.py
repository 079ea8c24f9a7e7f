from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cmibq.cli.main import main

ASK = "is red ?"  # the random model has more to say to it than to others


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "red.png"
    Image.new("RGB", (24, 20), "red").save(path)
    return path


def test_one_question(llava_dir: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", "--model-path", str(llava_dir), "--image-file", str(picture)]
    assert main([*words, "--question", ASK, "--max-new-tokens", "4", "--threads", "1"]) == 0
    told = capsys.readouterr()
    assert told.out.strip()
    assert told.out.endswith("\n")
    assert told.err == ""
    assert main([*words, "--question", ASK, "--max_new_tokens=4"]) == 0
    assert capsys.readouterr().out == told.out


def test_a_conversation(
    llava_dir: Path,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [ASK, "", "/new", "/image nowhere.png", f"/image {picture}", "/what", "/quit", ASK]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    words = ["chat", "--model-path", str(llava_dir), "--image-file", str(picture)]
    assert main([*words, "--max-new-tokens", "3"]) == 0
    told = capsys.readouterr()
    assert "forgotten" in told.out
    assert f"now looking at {picture}" in told.out
    assert "/quit or Ctrl-D ends" in told.out
    assert "image 'nowhere.png' does not exist" in told.err
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(words) == 0


def test_drawn_answers_repeat(
    llava_dir: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "chat",
        "--model-path",
        str(llava_dir),
        "--image-file",
        str(picture),
        "--question",
        ASK,
    ]
    drawn = []
    for seed in ("1", "1", "2"):
        assert main([*words, "--temperature", "3", "--seed", seed, "--max-new-tokens", "12"]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"--model-path": "/nowhere"}, 1, "model folder '/nowhere' does not exist"),
        ({"--image-file": "/nowhere.png"}, 1, "image '/nowhere.png' does not exist"),
        ({"--image-file": "TEXT"}, 1, "cannot be read"),
        ({"--model-path": "LM"}, 1, "model family 'llama' is not supported"),
        ({"--question": " "}, 2, "question is ' '; write one, or leave --question out"),
        ({"--model-path": ""}, 2, "name a folder: --model-path DIR"),
        ({"--image-file": ""}, 2, "name a picture: --image-file FILE"),
        ({"--max-new-tokens": "0"}, 2, "max_new_tokens is 0"),
        ({"--imagefile": "x"}, 2, "did you mean '--image_file'?"),
    ],
)
def test_what_is_wrong_is_told(
    change: dict[str, str],
    code: int,
    message: str,
    llava_dir: Path,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    named = {"TEXT": str(tmp_path / "text.png"), "LM": str(tmp_path / "lm")}
    given = {"--model-path": str(llava_dir), "--image-file": str(picture), "--question": ASK}
    given |= {flag: named.get(value, value) for flag, value in change.items()}
    assert main(["chat", *(word for pair in given.items() for word in pair)]) == code
    assert message in capsys.readouterr().err


def test_ctrl_c_ends_an_answer(llava_dir: Path, picture: Path) -> None:
    words = [sys.executable, "-c", _SLOW, "chat", "--model-path", str(llava_dir)]
    words += ["--image-file", str(picture), "--max-new-tokens", "100"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(words, **pipes, text=True, env=env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{ASK}\n")
        process.stdin.flush()
        assert "ask, or" in process.stdout.readline()
        while process.stdout.read(1) not in ("o", "e"):  # the answer has begun
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        told, errors = process.communicate("/new\n", timeout=60)
    assert " [stopped]\n" in told
    assert "forgotten" in told
    assert errors == ""
    assert process.returncode == 0


_SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from transformers.generation.streamers import TextStreamer
put = TextStreamer.put
TextStreamer.put = lambda self, value: (time.sleep(0.05), put(self, value))[1]
from cmibq.cli.main import main
raise SystemExit(main(sys.argv[1:]))
"""
