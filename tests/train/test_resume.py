"""Killed at any moment and started again: the same parameters as without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.errors import DataError, PackageError
from cmibq.io.tensors import read_tensors
from cmibq.train import Checkpoints, read_journal
from tests.train import worker
from tests.train.hosts import host

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {"steps": 5, "every": 2, "alignment_weight": 0.5}
NEVER = (0, 0)


def run(folder: Path, die: tuple[int, int] = NEVER, **more: Any) -> None:
    worker.train(folder, **SETTINGS | more, die=die)


def start(folder: Path, die: tuple[int, int] = NEVER, **more: Any) -> subprocess.Popen[bytes]:
    told = json.dumps(SETTINGS | more | {"die": die})
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.train.worker", str(folder), told]
    return subprocess.Popen(words, cwd=ROOT, env=env)


def end(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "end.safetensors")[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def check(folder: Path, whole: Path) -> None:
    found, want = end(folder), end(whole)
    assert [name for name in want if not torch.equal(found[name], want[name])] == []
    lines = read_journal(folder / "log.jsonl")
    assert lines == read_journal(whole / "log.jsonl")
    assert [(r["stage"], r["step"]) for r in lines] == [(s, n) for s in (1, 2) for n in range(5)]


def test_killed_in_a_step_of_either_stage(whole: Path, tmp_path: Path) -> None:
    """SIGKILL in a process of its own at stage 2, step 3, and in the steps of this one."""
    process = start(tmp_path, (2, 3))
    assert process.wait(120) == -signal.SIGKILL
    assert not (tmp_path / "end.safetensors").exists()
    run(tmp_path)
    check(tmp_path, whole)


@pytest.mark.slow
def test_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    """Killed from outside, wherever it is, until it gets through."""
    for number in range(5):
        process = start(tmp_path, every=1)
        log = tmp_path / "log.jsonl"
        before, begin = len(read_journal(log)), time.monotonic()
        while process.poll() is None and len(read_journal(log)) < before + 1 + number % 3:
            time.sleep(0.002)
            assert time.monotonic() - begin < 120
        time.sleep(0.01 * number)
        process.kill()
        if process.wait() == 0:
            break
    run(tmp_path, every=1)
    check(tmp_path, whole)


@pytest.mark.parametrize("place", [(1, 0), (1, 1), (1, 4), (2, 0), (2, 4)])
def test_stopped_at(place: tuple[int, int], whole: Path, tmp_path: Path) -> None:
    """At the first step, before and behind checkpoints, between the stages, at the last step."""

    class Stopped(BaseException):
        pass

    def stop(pid: int, number: int) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.os, "kill", stop)
        with pytest.raises(Stopped):
            run(tmp_path, place)
    torch.manual_seed(99)  # the generator of a new process is in another state
    run(tmp_path)
    check(tmp_path, whole)


def test_a_checkpoint_has_no_pickle_and_is_whole_or_absent(whole: Path) -> None:
    folder = whole / "checkpoint"
    assert sorted(p.name for p in folder.iterdir()) == ["state.json", "state.safetensors"]
    assert [p.name for p in whole.iterdir() if p.name.endswith(".part")] == []
    assert Checkpoints(folder).place() == (2, 4)


def test_a_checkpoint_of_something_else_is_refused(whole: Path, tmp_path: Path) -> None:
    other = host(hidden_dim=16)
    optimiser = torch.optim.AdamW(other.parameters())
    kept = Checkpoints(whole / "checkpoint")
    with pytest.raises(DataError, match="is a checkpoint of something else"):
        kept.load({"model": other}, optimiser)
    with pytest.raises(DataError, match=r"of other settings \(seed\)"):
        Checkpoints(whole / "checkpoint", facts={"seed": 1}).place()
    model = host()
    optimiser = torch.optim.AdamW(model.parameters())
    saved = Checkpoints(tmp_path / "c")
    saved.save(1, 1, {"model": model}, optimiser)
    file = tmp_path / "c" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(PackageError):
        saved.load({"model": model}, optimiser)


def test_a_cut_off_line_of_the_journal_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"stage": 1, "step": 0}\n{"stage": 1, "st')
    assert read_journal(log) == [{"stage": 1, "step": 0}]
    log.write_text('{"stage": 1, \n{"stage": 1, "step": 1}\n')
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        read_journal(log)
