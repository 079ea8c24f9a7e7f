"""CALM in the unmodified TinyLLaVA_Factory; `make hosts` makes its environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTS = Path(os.environ.get("CMIBQ_HOSTS", ROOT / ".hosts"))
PYTHON, REPO = HOSTS / "host-tinyllava/bin/python", HOSTS / "TinyLLaVA_Factory"


@pytest.mark.host
@pytest.mark.skipif(
    not (PYTHON.exists() and REPO.exists()), reason="needs TinyLLaVA and host-tinyllava: make hosts"
)
@pytest.mark.parametrize(
    "part",
    [
        "stages",
        "checkpointing",
        "readme",
        "bottleneck",
        "torchrun",
        "fork",
        "serving",
        "installing",
    ],
)
def test_tinyllava_trains_a_composed_tower(part: str) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_DISABLED": "true", **offline}
    command = [str(PYTHON), str(ROOT / "tests/integrations/host_tinyllava.py"), str(REPO), part]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=600, check=False
    )
    assert f"ok {part}" in done.stdout, done.stderr[-4000:]
