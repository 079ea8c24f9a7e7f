"""Killed at ten random moments, a run ends with the bytes of one that was never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# One process imports everything and forks each attempt, so that a kill costs no imports.
DRIVER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
from cmibq.ptq import prepare, quantize
from cmibq.recipe import QuantRecipe
import cmibq.io, cmibq.eval.verify, tqdm, transformers.models.llava.modeling_llava

given, whole, broken = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
def recipe(folder):
    places = {"output_path": str(folder / "out"), "scale_path": str(folder / "scales.safetensors")}
    return QuantRecipe(**given, **places)
def fork(folder):
    child = os.fork()
    if child == 0:
        quantize(recipe(folder), progress=False)
        os._exit(0)
    return child
start = time.monotonic()
_, code = os.waitpid(fork(broken), 0)
assert code == 0, code
shutil.move(broken, whole)  # the files name the folder they were made for
broken.mkdir()
seconds = time.monotonic() - start
draw, kills, kept = random.Random(int(sys.argv[4])), 0, set()
blocks = prepare(recipe(broken)).journal.own
states = []
while kills < 10:
    child = fork(broken)
    time.sleep(draw.uniform(0.1, 0.8) * seconds)
    os.kill(child, signal.SIGKILL)
    _, code = os.waitpid(child, 0)
    now = {p.name: p.stat().st_mtime_ns for p in blocks.glob("block-*")} if blocks.exists() else {}
    if code == signal.SIGKILL:
        kills += 1
        states.append(len(now))
        if not (broken / "out").exists():
            assert kept <= set(now.items()), "a finished block was lost or made again"
            kept = set(now.items())
    if (broken / "out").exists():
        shutil.rmtree(broken)
        broken.mkdir()
        kept = set()
_, code = os.waitpid(fork(broken), 0)
assert code == 0, code
print(json.dumps(states))
"""


def files(folder: Path) -> dict[str, bytes]:
    """Return the results."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_ten_kills(tmp_path: Path, llava_gqa_dir: Path, items_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    broken.mkdir()
    given = {"model_args": f"pretrained={llava_gqa_dir}", "data_path": str(items_path)}
    given |= {"method": "mbq", "reweight": True, "w_bit": 3, "w_group": 32, "n_grid": 10}
    given |= {"run_process": True, "threads": 1, "verify": False}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(given), str(whole), str(broken), "5"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, other = files(whole), files(broken)
    assert sorted(one) == sorted(other)
    for name in one:
        assert one[name] == other[name], name
