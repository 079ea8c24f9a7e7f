from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cmibq.cli.main import main
from cmibq.demo import run as running
from cmibq.demo.plan import DataOptions, DemoOptions, eval_runs, quantize_runs
from cmibq.demo.prepare import prepare
from cmibq.errors import CmibqError, ConfigError
from cmibq.recipe import EvalConfig, QuantRecipe


def test_plan_has_every_method_at_every_setting_on_both_models() -> None:
    runs = quantize_runs(Path("w"))
    assert len(runs) == 32
    assert len({run["output_path"] for run in runs}) == 32
    recipes = [QuantRecipe(**run) for run in runs]
    assert {r.method for r in recipes} == {"rtn", "smoothquant", "awq", "mbq"}
    assert {(r.w_bit, r.w_group, r.a_bit) for r in recipes} == {
        (4, 64, 16),
        (3, 64, 16),
        (2, 32, 16),
        (4, 64, 8),
    }
    assert all(r.reweight is (r.method == "mbq") for r in recipes)


def test_eval_measures_every_package_and_both_float_models() -> None:
    runs = eval_runs(Path("w"))
    configs = [EvalConfig(**run) for run in runs]
    assert [c.name for c in configs[:2]] == ["planted-float", "plain-float"]
    packages = {f"pretrained={run['output_path']}" for run in quantize_runs(Path("w"))}
    assert {c.model_args for c in configs[2:]} == packages
    assert {c.baseline for c in configs[2:18]} == {"w/eval/planted-float"}
    assert all(c.data_path == "w/data/test.json" for c in configs)
    assert all(run["data_path"] == "w/data/dev.json" for run in eval_runs(Path("w"), split="dev"))
    assert len(eval_runs(Path("w"), quick=True)) == 7


def test_results_of_other_questions_lie_elsewhere() -> None:
    folders = {
        Path(run["output_path"]).parent
        for split in ("test", "dev")
        for quick in (False, True)
        for run in eval_runs(Path("w"), split=split, quick=quick)
    }
    assert {f.name for f in folders} == {"eval", "eval-quick", "eval-dev", "eval-dev-quick"}
    packages = {
        Path(r["output_path"]).parent
        for q in (0, 1)
        for r in quantize_runs(Path("w"), quick=bool(q))
    }
    assert {f.name for f in packages} == {"packages", "packages-quick"}


@pytest.mark.parametrize("cls", [DataOptions, DemoOptions])
def test_unknown_split(cls: type) -> None:
    with pytest.raises(ConfigError, match="split is 'train'; allowed are test, dev"):
        cls(split="train")


def test_prepare_writes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = DataOptions(out=str(tmp_path / "w"), split="dev", quick=True)
    made = prepare(options, progress=False)
    runs = yaml.safe_load(Path(made["quantize"]).read_text())
    assert runs == quantize_runs(tmp_path / "w", quick=True)
    assert (tmp_path / "w/models/planted/planted_factors.json").exists()
    assert not (tmp_path / "w/models/plain/planted_factors.json").exists()
    weights = [Path(m, "model.safetensors") for m in made["models"]]
    before = [w.stat().st_mtime_ns for w in weights]
    assert main(["demo-data", "--out", str(tmp_path / "w"), "--split", "dev", "--quick"]) == 0
    assert [w.stat().st_mtime_ns for w in weights] == before
    assert f"cmibq quantize --config {tmp_path}/w/quantize.yaml" in capsys.readouterr().out


def test_training_is_done_once_and_its_weights_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmibq.demo import training

    made = []

    def train(folder: Path) -> None:
        made.append(folder)
        real(folder, seed=3, steps=2, threads=1)

    real = training.train
    monkeypatch.setattr(training, "train", train)
    options = DataOptions(out=str(tmp_path), split="dev", train=True, quick=True)
    shipped = prepare(DataOptions(out=str(tmp_path), quick=True), progress=False)
    before = Path(shipped["models"][1], "model.safetensors").read_bytes()
    prepare(options, progress=False)
    assert Path(shipped["models"][1], "model.safetensors").read_bytes() != before
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"spoilt")
    prepare(options, progress=False)
    prepare(options, progress=False)
    assert made == [tmp_path / "weights"] * 2


class Calls:
    """Stands in for the commands: makes the files of a stage, or fails at one."""

    def __init__(self, options: DemoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.fail = ""
        self.stages = {stage.words: stage for stage in running.stages(options)}
        monkeypatch.setattr(running, "_call", self)

    def __call__(self, words: tuple[str, ...]) -> int:
        self.made.append(words[0])
        if words[0] == self.fail:
            return 3
        for path in self.stages[words].makes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        return 0


def test_finished_stages_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DemoOptions(out=str(tmp_path), quick=True)
    calls, told = Calls(options, monkeypatch), list[str]()
    calls.fail = "eval"
    with pytest.raises(CmibqError, match="'cmibq eval' failed with exit code 3"):
        running.run_demo(options, told.append)
    assert calls.made == ["demo-data", "quantize", "eval"]
    assert "$ cmibq quantize --config" in "\n".join(told)
    calls.fail = ""
    running.run_demo(options, told.append)
    assert calls.made[3:] == ["eval", "report"]
    next(tmp_path.glob(".work/packages-quick/*/manifest.json")).unlink()
    running.run_demo(options, told.append)
    assert calls.made[5:] == ["quantize", "report"]


def test_other_options_do_everything_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for quick in (True, False):
        options = DemoOptions(out=str(tmp_path), quick=quick)
        calls = Calls(options, monkeypatch)
        running.run_demo(options, lambda text: None)
        assert calls.made == ["demo-data", "quantize", "eval", "report"]


def test_commands_are_this_cmibq_wherever_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cmibq").mkdir()
    (tmp_path / "cmibq" / "__init__.py").write_text("raise RuntimeError('another cmibq')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert running._call(("--version",)) == 0
    assert running._call(("doctor", "--nonsense")) == 2


def test_heap_settings_yield_to_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    env = running._environment()
    assert env["MALLOC_TOP_PAD_"] == "1"
    assert env["MALLOC_MMAP_MAX_"] == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_killed_demo_takes_its_command_along(tmp_path: Path) -> None:
    code = (
        "import cmibq.demo.run as run, subprocess, sys\n"
        "real = subprocess.Popen\n"
        "class Sleep(real):\n"
        "    def __init__(self, command, **kw):\n"
        "        super().__init__(['sleep', '60'], **kw)\n"
        "        print(self.pid, flush=True)\n"
        "run.subprocess.Popen = Sleep\n"
        "run._call(('doctor',))\n"
    )
    demo = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    child = int(demo.stdout.readline())
    demo.send_signal(signal.SIGKILL)
    demo.wait()
    demo.stdout.close()
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the command outlived the demo")


def test_journal_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DemoOptions(out=str(tmp_path), quick=True)
    Calls(options, monkeypatch)
    running.run_demo(options, lambda text: None)
    journal = json.loads((tmp_path / ".work" / "stages.json").read_text())
    assert list(journal) == ["demo-data", "quantize", "eval"]
