"""Training fusions: frozen towers, records, kill and resume, two processes as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.errors import ModelError
from cmibq.io.tensors import read_tensors
from cmibq.models.composed import watched
from cmibq.train import read_journal
from cmibq.train.calm import check_frozen, grad_norm, mean_entropy, train_calm
from tests.train import calm_worker as worker
from tests.train.test_distributed import ROOT, pair

pytest.importorskip("transformers", reason="needs transformers: pip install 'cmibq[hf]'")

SETTINGS: dict[str, Any] = {"steps": 3, "every": 1, "die": (0, 0)}


def end(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "end.safetensors")[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    worker.train(folder, **SETTINGS)
    return folder


def test_fusions_alone_are_trained_and_told_of(whole: Path) -> None:
    fresh = dict(worker.Host("gated_attention").named_parameters())
    changed = {n for n, p in end(whole).items() if not torch.equal(p, fresh[n])}
    assert {n.split(".")[1] for n in changed if n.startswith("tower")} == {"calm_modules"}
    log, seen = read_journal(whole / "log.jsonl"), read_journal(whole / "monitor.jsonl")
    assert [(r["stage"], r["step"]) for r in log] == [(s, n) for s in (1, 2) for n in range(3)]
    assert [(r["stage"], r["step"]) for r in seen] == [(r["stage"], r["step"]) for r in log]
    for told, row in zip(log, seen, strict=True):
        assert told["learning_rate"] > 0
        cells = [v for layer in row["entropy"] for v in layer]
        assert len(cells) == 2 * 4
        assert told["attention_entropy"] == pytest.approx(sum(cells) / 8, abs=1e-4)
        norm = sum(n * n for n in row["grad_norm"]) ** 0.5
        assert told["calm_module_grad_norm"] == pytest.approx(norm, rel=1e-6)


def test_norms_and_entropies_equal_those_by_hand() -> None:
    host = worker.Host("cross_attention").train()
    with watched() as seen:
        host(worker.data(1, 2)[0])["loss"].backward()
    grads = [p.grad for p in host.tower.calm_modules.parameters()]
    want = float(torch.cat([g.flatten() for g in grads if g is not None]).double().norm())
    assert grad_norm(host.tower) == pytest.approx(want, rel=1e-5)
    entropy = mean_entropy(seen)
    assert entropy is not None
    for n, at in enumerate(host.tower.layers):
        torch.testing.assert_close(entropy[n], seen[0].entropy[at].mean((0, 2)))
    assert mean_entropy([]) is None


def test_towers_that_are_not_frozen_are_refused() -> None:
    host = worker.Host("gated_attention")
    next(host.tower.augmenting_tower.parameters()).requires_grad_(True)
    with pytest.raises(ModelError, match="1 parameters of the augmenting_tower are not frozen"):
        check_frozen(host.tower)
    optimiser = torch.optim.AdamW(host.head.parameters())
    with pytest.raises(ModelError, match="CALM trains calm_modules alone"):
        train_calm(host, host.tower, [], optimiser, worker.CPU)


def test_killed_in_either_stage_it_ends_with_the_same_parameters(
    whole: Path, tmp_path: Path
) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for place in ((1, 2), (2, 1)):
        told = json.dumps(SETTINGS | {"die": place})
        words = [sys.executable, "-m", "tests.train.calm_worker", str(tmp_path), told]
        assert subprocess.run(words, cwd=ROOT, env=env, timeout=120).returncode == -signal.SIGKILL
        assert not (tmp_path / "end.safetensors").exists()
    torch.manual_seed(99)
    worker.train(tmp_path, **SETTINGS)
    found, want = end(tmp_path), end(whole)
    assert [name for name in want if not torch.equal(found[name], want[name])] == []
    for name in ("log.jsonl", "monitor.jsonl"):
        assert read_journal(tmp_path / name) == read_journal(whole / name)


def test_two_processes_equal_one_with_the_double_batch(tmp_path: Path) -> None:
    settings = SETTINGS | {"every": 0}
    pair(tmp_path / "two", settings, "tests.train.calm_worker")
    (tmp_path / "one").mkdir()
    worker.train(tmp_path / "one", **settings)
    found, want = end(tmp_path / "two"), end(tmp_path / "one")
    for name in want:
        torch.testing.assert_close(found[name], want[name], atol=1e-5, rtol=0)
    for file in ("log.jsonl", "monitor.jsonl"):
        logs = [read_journal(tmp_path / n / file) for n in ("two", "one")]
        for a, b in zip(*logs, strict=True):
            flat = [(k, torch.tensor(v, dtype=torch.float64)) for k, v in sorted(a.items())]
            for key, value in flat:
                right = torch.tensor(b[key], dtype=torch.float64)
                torch.testing.assert_close(value, right, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("strategy", ["gated_attention", "cross_attention"])
def test_accumulated_batches_equal_one(strategy: str, tmp_path: Path) -> None:
    for name, more in (("two", {"accumulate": 2, "rows": 2}), ("one", {})):
        (tmp_path / name).mkdir()
        settings = SETTINGS | {"every": 0, "strategy": strategy} | more
        worker.train(tmp_path / name, **settings)
    found, want = end(tmp_path / "two"), end(tmp_path / "one")
    for name in want:
        torch.testing.assert_close(found[name], want[name], atol=1e-5, rtol=0)


def test_it_runs_under_autocast(tmp_path: Path) -> None:
    worker.train(tmp_path, **SETTINGS | {"every": 0, "autocast": True})
    losses = [r["train_loss"] for r in read_journal(tmp_path / "log.jsonl")]
    assert all(0 < loss < 5 for loss in losses)
