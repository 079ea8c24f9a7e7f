"""CM-IBQ in the unmodified original LLaVA; `make hosts` makes its environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTS = Path(os.environ.get("CMIBQ_HOSTS", ROOT / ".hosts"))
PYTHON = HOSTS / "host-llava/bin/python"
LLAVA, NEXT = HOSTS / "LLaVA", HOSTS / "LLaVA-NeXT"


@pytest.mark.host
@pytest.mark.skipif(
    not (PYTHON.exists() and LLAVA.exists()), reason="needs the environment host-llava: make hosts"
)
@pytest.mark.parametrize("part", ["finetune", "adapter", "torchrun", "model"])
def test_the_original_llava_trains_a_layer(part: str) -> None:
    run(part, LLAVA)


@pytest.mark.host
@pytest.mark.skipif(
    not (PYTHON.exists() and NEXT.exists()), reason="needs LLaVA-NeXT and host-llava: make hosts"
)
def test_llava_next_takes_lists_of_crops() -> None:
    run("next", NEXT)


def run(part: str, repo: Path) -> None:
    """Run a part of host_llava.py in its environment."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_DISABLED": "true", **offline}
    command = [str(PYTHON), str(ROOT / "tests/integrations/host_llava.py"), str(repo), part]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=600, check=False
    )
    assert f"ok {part}" in done.stdout, done.stderr[-4000:]
