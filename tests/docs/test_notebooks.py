"""The code cells of the notebooks run, in order, as a script; with fewer steps."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_cm_ibq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from cmibq.demo import data
    from cmibq.ops.library import torch_threads

    shown: list[Any] = []
    display = types.ModuleType("IPython.display")
    display.display = shown.append  # type: ignore[attr-defined]
    display.clear_output = lambda wait: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(data, "SHAPES", {"calib": (8, 2), "dev": (4, 4)})
    book = json.loads((ROOT / "docs/notebooks/cm-ibq.ipynb").read_text())
    cells = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "notebook"}
    with torch_threads(1):
        for number, text in enumerate(cells):
            small = text.replace("STEPS = 300", "STEPS = 30")
            exec(compile(small, f"cell {number}", "exec"), names)
    assert len(shown) == 2
    assert (names["out"] / "report.html").exists()
    assert 0 < names["size"] < 256
