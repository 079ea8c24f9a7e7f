"""Reference recipes take the samples, in the order and with the labels, of the published code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmibq.data import CALIBRATIONS, encode_calibration
from cmibq.recipe import QuantRecipe
from tests.fixtures import make_processor
from tests.golden.calibration_data import COUNTS, digest, write_all

WANTED = json.loads((Path(__file__).parents[1] / "golden" / "calibration.json").read_text())


@pytest.mark.parametrize("name", COUNTS)
def test_reference_data_is_the_published_data(name: str, tmp_path: Path) -> None:
    items, long_texts, texts = write_all(tmp_path)
    fields: dict[str, Any] = {"variant": "reference", "n_samples": COUNTS[name]}
    if name == "pileval":
        fields |= {"calib_data": name, "data_path": str(texts)}
    else:
        fields |= {"data_path": str(items)} | ({} if name == "plain" else {name: True})
    if name == "interleave_format":
        fields |= {"text_data_path": str(long_texts)}
    recipe = QuantRecipe(**fields)
    samples = CALIBRATIONS[recipe.calib_data].read(recipe)
    made = encode_calibration(samples, make_processor(), recipe, None)
    rows = [(e.ids.tolist(), np.where(e.answer, e.ids, -100).tolist()) for e in made]
    assert digest(rows) == WANTED[name]
