"""``cmibq train cm-ibq`` in two processes trains what it trains in one with the double batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from cmibq.cli.main import main
from cmibq.io.tensors import read_tensors
from cmibq.train import read_journal

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    **{"hidden_dim": 8, "min_bits": 0, "stage1_bits": 4, "stage2_bits": 1, "n_diagnose": 0},
    **{"stage1_steps": 5, "stage2_steps": 5, "checkpoint_every": 0, "threads": 1},
    **{"mode": "task", "alignment_weight": 0.1, "train": "lm,projector"},
}


def pair(words: list[str]) -> None:
    """Run the command in two processes, as torchrun starts them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {
        **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        **{"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    whole = [sys.executable, "-m", "cmibq", *words]
    both = [subprocess.Popen(whole, cwd=ROOT, env=env | {"RANK": str(r)}) for r in range(2)]
    assert [p.wait(180) for p in both] == [0, 0]


def test_two_processes_train_what_one_does(
    llava_dir: Path, items_path: Path, tmp_path: Path
) -> None:
    places = {"model_args": f"pretrained={llava_dir}", "data_path": str(items_path)}
    told = [f"--{name}={value}" for name, value in (SETTINGS | places).items()]
    start, out = ["train", "cm-ibq", *told], [f"--output_path={tmp_path / n}" for n in "12"]
    assert main([*start, out[0], "--batch_size=8"]) == 0
    pair([*start, out[1], "--batch_size=4"])
    want, found = (read_tensors(tmp_path / n / "model" / "model.safetensors")[0] for n in "12")
    assert want.keys() == found.keys()
    apart = {n: float((found[n].double() - v.double()).abs().max()) for n, v in want.items()}
    assert {n: gap for n, gap in apart.items() if gap > 1e-5} == {}
    logs = [read_journal(tmp_path / n / "log.jsonl") for n in "12"]
    assert len(logs[0]) == 10
    for a, b in zip(*logs, strict=True):
        torch.testing.assert_close(list(a.values()), list(b.values()), atol=1e-6, rtol=1e-4)
