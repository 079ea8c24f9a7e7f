"""The unmodified original LLaVA, through our adapter; `make hosts` makes its environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTS = Path(os.environ.get("CMIBQ_HOSTS", ROOT / ".hosts"))
PYTHON, LLAVA = HOSTS / "host-llava/bin/python", HOSTS / "LLaVA/llava"


@pytest.mark.host
@pytest.mark.skipif(
    not (PYTHON.exists() and LLAVA.exists()), reason="needs the environment host-llava: make hosts"
)
def test_the_original_llava_gives_the_same_logits_and_is_quantised() -> None:
    paths = os.pathsep.join((str(ROOT), str(LLAVA.parent)))
    env = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    command = [str(PYTHON), str(ROOT / "tests/models/host_llava.py")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=300, check=False
    )
    assert "same logits, quantised" in done.stdout, done.stderr[-4000:]
