"""The published MBQ itself, run in its own environment: `make hosts` makes it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cmibq.io import save_scales
from tests.golden.loader import FOLDER
from tests.ptq.test_published_models import FAMILIES, run

HOSTS = Path(os.environ.get("CMIBQ_HOSTS", FOLDER.parents[1] / ".hosts"))
NEEDED = (HOSTS / "host-mbq/bin/python", HOSTS / "MBQ/qmllm", HOSTS / "LLaVA/llava")


@pytest.mark.slow
@pytest.mark.host
@pytest.mark.skipif(
    not all(p.exists() for p in NEEDED), reason="needs the environment host-mbq: make hosts"
)
def test_mbq_repeats_its_numbers_and_loads_our_scales(tmp_path: Path) -> None:
    for family in FAMILIES:
        save_scales(tmp_path / f"{family}.pt", run(family, "w3/mae/reweight").entries)
    python, mbq, llava = NEEDED
    command = [str(python), str(FOLDER / "check_vlm.py"), "--mbq", str(mbq.parent)]
    command += ["--llava", str(llava.parent), str(tmp_path)]
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, env=kept, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
