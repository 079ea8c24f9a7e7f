"""`import cmibq` is quick and light; the map of public names is right."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

import cmibq
from cmibq.runtime import default_threads


def child(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_import_loads_no_torch_and_no_extension() -> None:
    code = (
        "import sys, cmibq; print([m for m in ('torch', 'numpy', 'cmibq._C') if m in sys.modules])"
    )
    assert child(code) == "[]"


def test_arrays_load_no_torch() -> None:
    code = (
        "import sys, numpy as np, cmibq; o = np.ones(1, 'f');"
        "y = cmibq.arrays.fakequant(np.ones((1, 3), 'f'), o, -o, o);"
        "print(y.sum(), 'torch' in sys.modules)"
    )
    assert child(code) == "3.0 False"


def test_every_public_name_resolves() -> None:
    for name in cmibq.__all__:
        assert getattr(cmibq, name) is not None
        if name in cmibq._HOME:
            home = importlib.import_module(cmibq._HOME[name])
            assert name in home.__all__


@pytest.mark.parametrize(
    ("text", "threads"), [("3", 3), ("4,2", 4), ("0", None), ("\u00b2", None), ("9999", 1024)]
)
def test_threads_without_torch(
    text: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert default_threads() == (threads or len(os.sched_getaffinity(0)))
