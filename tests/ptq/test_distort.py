"""Searching on inputs of quantised layers (the published numbers are in test_published)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.ptq import quantize
from cmibq.ptq import run as module
from tests.ptq.test_resume import recipe, same_scales


def weights(folder: Path) -> list[bytes]:
    """Return the weight files, of whatever format."""
    return [p.read_bytes() for p in sorted((folder / "out").glob("*.safetensors"))]


@pytest.mark.parametrize("a_bit", [16, 8])
def test_a_run_that_is_cut_off_goes_on_with_the_same_inputs(
    a_bit: int, tmp_path: Path, llava_gqa_dir: Path, items_path: Path, monkeypatch: Any
) -> None:
    made = []
    for name in ("plain", "whole", "broken"):
        (tmp_path / name).mkdir()
        asked = recipe(tmp_path / name, llava_gqa_dir, items_path)
        made.append(replace(asked, distort=name != "plain", a_bit=a_bit, n_grid=8))
    plain, whole, broken = made
    quantize(plain, progress=False)
    quantize(whole, progress=False)
    real = module.search_block

    def fail(task: Any, index: int, *rest: Any) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return real(task, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "search_block", fail)
        with pytest.raises(KeyboardInterrupt):
            quantize(broken, progress=False)
    quantize(broken, progress=False)
    same_scales(tmp_path / "whole", tmp_path / "broken")
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")
    assert weights(tmp_path / "whole") != weights(tmp_path / "plain")


def test_the_model_is_left_as_it_was(llava_gqa_dir: Path, items_path: Path, tmp_path: Path) -> None:
    asked = replace(
        recipe(tmp_path, llava_gqa_dir, items_path), distort=True, output_path="", n_grid=3
    )
    found = quantize(asked, progress=False)
    assert found.output_path is None
    assert all(g["vision_weight"] >= 0 for g in found.groups)
    assert torch.isfinite(torch.tensor([min(g["losses"]) for g in found.groups])).all()
