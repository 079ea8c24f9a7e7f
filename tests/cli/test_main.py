from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import cmibq
from cmibq.cli import main as cli
from cmibq.cli.runs import perform
from cmibq.errors import ConfigError, DataError


def command(*words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cmibq", *words], capture_output=True, text=True, **kwargs
    )


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cmibq {cmibq.__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_is_there_and_does_not_import_torch(name: str) -> None:
    code = (
        "import sys; from cmibq.cli.main import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'matplotlib', 'sklearn'} & set(sys.modules);"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: cmibq {name}")


def test_unknown_command_offers_the_nearest() -> None:
    done = command("quantise")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "cmibq: error: unknown command 'quantise'; did you mean 'quantize'?\n"


def noted(error: Exception, note: str) -> Exception:
    error.add_note(note)
    return error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("w_bit is 9"), 2, "cmibq: error: w_bit is 9\n"),
        (DataError("line 3\n  is bad"), 1, "cmibq: error: line 3 is bad\n"),
        (OSError(28, "No space left on device", "x"), 1, "No space left on device: x\n"),
        (ImportError("No module named 'torch'", name="torch"), 1, "pip install 'cmibq[torch]'\n"),
        (ImportError("No module named 'x.y'", name="x.y"), 1, "error: No module named 'x.y'\n"),
        (MemoryError(), 1, "out of memory; use fewer samples or a smaller batch\n"),
        (RuntimeError("a\nb"), 1, "unexpected RuntimeError: a b (run again with --debug"),
        (noted(DataError("bad"), "run 2 of 3 (x)"), 1, "error: run 2 of 3 (x): bad\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line_and_a_code(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["doctor"]) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    if code != 130:
        assert cli.main(["doctor", "--debug"]) == code
        assert "Traceback" in capsys.readouterr().err


def test_control_c_ends_with_130() -> None:
    code = (
        "import os, signal, sys; import cmibq.cli.main as cli;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # background jobs have none
        "cli._dispatch = lambda words: os.kill(os.getpid(), signal.SIGINT);"
        "sys.exit(cli.main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130, signal.SIGINT
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "cmibq"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


def run(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, method="awq", w_bit=3, w_group=64, a_bit=8)


def test_runs_show_number_outcome_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    bars = []

    def one(what: SimpleNamespace, bar: bool) -> tuple[str, bool]:
        bars.append(bar)
        return ("already there", False) if what.name == "b" else ("saved", True)

    perform([run("a"), run("b"), run("")], one)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[1/3] a ... saved, 0.0 s, about 0.0 s left")
    assert lines[1].startswith("[2/3] b ... already there, about ")
    assert lines[2].startswith("[3/3] awq w3a8 g64 ... saved, 0.0 s")
    assert bars == [False] * 3
    perform([run("a")], one)
    assert capsys.readouterr().out == "a: saved, 0.0 s\n"
    assert bars[-1] is True


def test_the_first_failure_ends_the_runs() -> None:
    seen = []

    def one(what: SimpleNamespace, bar: bool) -> tuple[str, bool]:
        seen.append(what.name)
        raise DataError("broken")

    with pytest.raises(DataError, match="broken") as caught:
        perform([run("a"), run("b")], one)
    assert caught.value.__notes__ == ["run 1 of 2 (a)"]
    with pytest.raises(DataError, match="broken") as caught:
        perform([run("a")], one)
    assert not hasattr(caught.value, "__notes__")
    assert seen == ["a", "a"]
