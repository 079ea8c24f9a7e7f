"""Two processes with half of every batch each train what one trains with all of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.io.tensors import read_tensors
from cmibq.train import read_journal
from tests.train import worker

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {"steps": 4, "every": 0, "die": (0, 0), "alignment_weight": 0.5}


def pair(folder: Path, settings: dict[str, Any], module: str = "tests.train.worker") -> None:
    """Run two processes as torchrun starts them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {
        **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        **{"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    words = [sys.executable, "-m", module, str(folder), json.dumps(settings)]
    both = [subprocess.Popen(words, cwd=ROOT, env=env | {"RANK": str(r)}) for r in range(2)]
    assert [p.wait(180) for p in both] == [0, 0]


@pytest.mark.parametrize("more", [{}, {"budget": "soft", "mode": "task"}], ids=["hard", "soft"])
def test_two_processes_equal_one(more: dict[str, Any], tmp_path: Path) -> None:
    settings = SETTINGS | more
    pair(tmp_path / "two", settings)
    (tmp_path / "one").mkdir()
    worker.train(tmp_path / "one", **settings)
    found, want = (read_tensors(tmp_path / n / "end.safetensors")[0] for n in ("two", "one"))
    for name in want:
        torch.testing.assert_close(found[name], want[name], atol=1e-5, rtol=0)
    logs = [read_journal(tmp_path / n / "log.jsonl") for n in ("two", "one")]
    for a, b in zip(*logs, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
