from __future__ import annotations

import socket
import sys
import types
from pathlib import Path

import pytest

from cmibq.cli.main import main
from cmibq.errors import ConfigError, ModelError
from cmibq.recipe.serve import ServeConfig
from cmibq.serve.app import find_port
from cmibq.serve.opening import open_panel
from tests.serve.composed import write_presets


def test_without_gradio_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve", "--model-path", "somewhere"]) == 1
    assert "pip install 'cmibq[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model-path", "/nowhere"], 1, "model folder '/nowhere' does not exist"),
        (["--model-path", "PLAIN"], 1, "is no composed model: its vision tower stands alone"),
        (["--model-path", "PLAIN", "--presets", "/no.json"], 1, "no.json"),
        (["--port", "70000"], 2, "port is 70000"),
        (["--host", ""], 2, "host is empty; 127.0.0.1 serves this machine only"),
        (["--max-new-tokens", "0"], 2, "max_new_tokens is 0"),
    ],
)
def test_what_is_wrong_is_told(
    words: list[str],
    code: int,
    message: str,
    llava_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))
    words = [str(llava_dir) if word == "PLAIN" else word for word in words]
    assert main(["serve", *words]) == code
    assert message in capsys.readouterr().err


def test_only_this_machine_by_default() -> None:
    config = ServeConfig()
    assert (config.host, config.share, config.open_browser) == ("127.0.0.1", False, False)


def test_presets_come_first(llava_dir: Path, tmp_path: Path) -> None:
    path = write_presets(tmp_path)
    with pytest.raises(ModelError, match="stands alone"):
        open_panel(ServeConfig(model_path=str(llava_dir), presets=str(path)))


def test_a_taken_port_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 cannot be used"):
            find_port("127.0.0.1", port)
    assert find_port("127.0.0.1", 0) > 0
    with pytest.raises(ConfigError, match="cannot be used"):
        find_port("203.0.113.1", 0)  # an address for documentation
