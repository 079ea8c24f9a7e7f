"""The launcher, on a stand-in host: what is passed on, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cmibq import launch
from cmibq.errors import ConfigError


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A repository with a script that writes its arguments; what `install` was given."""
    script = tmp_path / "repo/llava/train/train.py"
    script.parent.mkdir(parents=True)
    told = tmp_path / "told.json"
    script.write_text(
        "import json, pathlib, sys\n"
        "told = json.dumps([__name__, sys.path[0], *sys.argv])\n"
        f"pathlib.Path({str(told)!r}).write_text(told)\n"
    )
    seen: dict[str, Any] = {"script": script, "told": told}
    stand_in = SimpleNamespace(install=lambda config: seen.update(config=config))
    monkeypatch.setattr(launch.importlib, "import_module", lambda name: stand_in)
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("CMIBQ_CONFIG", raising=False)
    return seen


def test_the_script_runs_as_main_with_the_rest(host: dict[str, Any], tmp_path: Path) -> None:
    layer = tmp_path / "layer.json"
    layer.write_text('{"min_bits": 1}')
    words = ["--host", "llava", "--cmibq-config", str(layer), "--local_rank=1"]
    launch.main([*words, "--", str(host["script"]), "--lr", "1"])
    told = json.loads(host["told"].read_text())
    assert told[0] == "__main__"
    assert told[2:] == [str(host["script"]), "--lr", "1", "--local_rank=1"]
    assert str(tmp_path / "repo") in sys.path
    assert host["config"] == {"min_bits": 1}


def test_a_configuration_may_come_from_the_environment(
    host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMIBQ_CONFIG", '{"stage2_bits": 3}')
    launch.main(["--host", "llava", "--", str(host["script"])])
    assert host["config"] == {"stage2_bits": 3}
    monkeypatch.delenv("CMIBQ_CONFIG")
    launch.main(["--host", "llava", "--", str(host["script"])])
    assert host["config"] is None


def test_what_is_refused(host: dict[str, Any], tmp_path: Path) -> None:
    start, script = ["--host", "llava"], str(host["script"])
    with pytest.raises(ConfigError, match="give a JSON file"):
        launch.main([*start, "--cmibq-config", str(tmp_path / "none.json"), "--", script])
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds no object"):
        launch.main([*start, "--cmibq-config", str(tmp_path / "list.json"), "--", script])
    with pytest.raises(ConfigError, match="is no file"):
        launch.main([*start, "--", str(tmp_path / "train.py")])
    (tmp_path / "alone.py").write_text("")
    with pytest.raises(ConfigError, match="not inside a package 'llava'"):
        launch.main([*start, "--", str(tmp_path / "alone.py")])
    with pytest.raises(SystemExit):
        launch.main(start)


def test_an_error_is_one_line_and_an_exit_code(
    host: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [sys.executable, "-m", "cmibq.launch", "--host", "llava", "--", str(tmp_path / "no.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("cmibq: error: ")
    assert done.stderr.count("\n") == 1
    start = ["--host", "llava", "--"]
    host["script"].write_text("from cmibq.errors import ModelError\nraise ModelError('no layer')\n")
    assert launch.guarded([*start, str(host["script"])]) == 1
    assert capsys.readouterr().err == "cmibq: error: no layer\n"
    assert launch.guarded(["--debug", *start, str(tmp_path / "no.py")]) == 2
    assert "Traceback" in capsys.readouterr().err
    host["script"].write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        launch.guarded([*start, str(host["script"])])
