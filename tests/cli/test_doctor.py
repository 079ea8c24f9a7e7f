from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cmibq.cli import checks, doctor
from cmibq.cli.checks import Check
from cmibq.cli.main import main


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """Make the doctor find what the test puts into this list."""
    found = [Check("python", "ok", "3.11")]
    monkeypatch.setattr(checks, "ALL", (lambda: found,))
    return found


def test_all_good(few: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "  ok   python  3.11\n\nall good\n"


def test_what_is_broken_is_named_with_its_cure(
    few: list[Check], capsys: pytest.CaptureFixture[str]
) -> None:
    few.append(Check("torchvision", "fail", "does not fit", "pip uninstall torchvision"))
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert " FAIL  torchvision  does not fit" in printed
    assert "-> pip uninstall torchvision" in printed


def test_json(few: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    few.append(Check("disk", "warn", "full", "free some space"))
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert told["checks"][1] == {
        "name": "disk",
        "state": "warn",
        "value": "full",
        "cure": "free some space",
    }


def test_every_real_check_runs_and_every_trouble_has_a_cure() -> None:
    found = doctor.examine()
    assert {"python", "cmibq", "threads", "memory", "C extension"} <= {c.name for c in found}
    assert all(c.cure for c in found if c.state != "ok")
    assert all(not c.cure for c in found if c.state == "ok")


def test_environment_traps() -> None:
    env = {"OPENBLAS_CORETYPE": "Haswell", "LD_PRELOAD": "/lib/libasan.so.8"}
    assert [(c.name, c.state) for c in checks.check_environment(env)] == [
        ("OPENBLAS_CORETYPE", "warn"),
        ("LD_PRELOAD", "warn"),
    ]
    assert checks.check_environment({})[0].state == "ok"


def test_isa_that_the_cpu_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMIBQ_ISA", "sparc")
    (found,) = checks.check_extension()
    assert found.state == "fail"
    assert "sparc" in found.value
    monkeypatch.setenv("CMIBQ_ISA", "scalar")
    assert checks.check_extension()[0].state in ("ok", "warn")


@pytest.mark.parametrize(
    ("torch", "vision", "state"),
    [
        ("cuda: Optional[str] = None", "cuda = '12.8'", "fail"),
        ("cuda: Optional[str] = '12.8'", "cuda = '12.8'", "ok"),
        ("cuda: Optional[str] = None", "git_version = 'x'", "ok"),
    ],
)
def test_torchvision_must_fit_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, vision: str, state: str
) -> None:
    texts = {"torch": torch, "torchvision": vision}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('must not be imported')")
        (tmp_path / name / "version.py").write_text(text + "\n")

    class Spec:
        def __init__(self, name: str) -> None:
            self.origin = str(tmp_path / name / "__init__.py")

    monkeypatch.setattr(checks, "find_spec", Spec)
    (found,) = checks.check_torchvision()
    assert found.state == state
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert checks.check_torchvision() == []


@pytest.mark.parametrize(("number", "state"), [("4.57.1", "fail"), ("6.0", "fail")])
def test_transformers_must_be_5(monkeypatch: pytest.MonkeyPatch, number: str, state: str) -> None:
    monkeypatch.setattr(checks, "_version", lambda package: number)
    (found,) = checks.check_transformers()
    assert found.state == state
    assert "transformers>=5,<6" in found.cure


def test_missing_packages_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_version", lambda package: None)
    found = {c.name: c for c in checks.check_versions()}
    assert found["torch"].cure == "pip install 'cmibq[torch]'"
    assert found["torch"].state == "warn"


def test_it_works_without_any_extra() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(('jsonargparse', 'yaml', 'torch', 'tqdm'));"
        "from cmibq.cli.main import main; sys.exit(main(['doctor', '--json']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr == ""
    assert {c["name"] for c in json.loads(run.stdout)["checks"]} >= {"numpy", "C extension"}
