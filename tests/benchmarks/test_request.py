"""The frame around whole requests: shapes, files, the line through few layers. Nothing is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import request_table
from benchmarks.request_models import IMAGE, SHAPES, inputs

ROW = {
    "shape": "7b",
    "candidate": "torch bfloat16, 2 layers",
    "threads": 2,
    "layers": 2,
    "first_token_s": 2.0,
    "tokens_per_s": 10.0,
    "limit_tokens_per_s": None,
    "read_gb_s": 20.0,
    "peak_bytes": 3e9,
    "empty_bytes": 1e9,
}


def test_bytes_of_a_token() -> None:
    shape = SHAPES["7b"]
    assert shape.linear_weights == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert shape.token_bytes(4.125, 8.125) == pytest.approx(3.47e9, rel=0.01)
    assert SHAPES["1b"].kv == 256


def test_a_request_has_an_image_and_text() -> None:
    shape = SHAPES["tiny"]
    asked = inputs(shape, 640, image=True)
    assert asked["input_ids"].shape == (1, 640)
    assert int((asked["input_ids"] == shape.vocab - 1).sum()) == IMAGE
    assert asked["pixel_values"].shape == (1, 3, 336, 336)


def test_rows_replace_older_ones(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    for seconds in (2.0, 3.0):
        request_table.merge(file, ROW | {"first_token_s": seconds})
    request_table.merge(file, ROW | {"candidate": "another"})
    rows = json.loads(file.read_text())
    assert [r["first_token_s"] for r in rows] == [2.0, 3.0]


def test_few_layers_are_continued_to_all() -> None:
    more = {"candidate": "torch bfloat16, 6 layers", "layers": 6, "first_token_s": 3.0}
    rows = [ROW, ROW | more | {"tokens_per_s": 5.0, "peak_bytes": 5e9}]
    text = request_table.table(rows)
    assert text.count("\n") == 3
    # 2 layers 2 s and 6 layers 3 s: 32 layers 9.5 s; 0.1 and 0.2 s a token: 0.85 s
    assert "line through 2 and 6 layers" in text
    assert "9.50 s | 1.2 " in text
    assert "18.00 GB | 17.00 GB" in text


def test_the_page_has_the_results() -> None:
    made = request_table.page()
    assert made == request_table.PAGE.read_text(), "run python benchmarks/request_table.py"
