"""CM-IBQ in the unmodified original LLaVA; `make hosts` makes its environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTS = Path(os.environ.get("CMIBQ_HOSTS", ROOT / ".hosts"))
PYTHON, LLAVA = HOSTS / "host-llava/bin/python", HOSTS / "LLaVA"


@pytest.mark.host
@pytest.mark.skipif(
    not (PYTHON.exists() and LLAVA.exists()), reason="needs the environment host-llava: make hosts"
)
@pytest.mark.parametrize("part", ["finetune", "adapter", "model"])
def test_the_original_llava_trains_a_layer(part: str) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_DISABLED": "true", **offline}
    command = [str(PYTHON), str(ROOT / "tests/integrations/host_llava.py"), str(LLAVA), part]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=600, check=False
    )
    assert f"ok {part}" in done.stdout, done.stderr[-4000:]
