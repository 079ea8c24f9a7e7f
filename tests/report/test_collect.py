from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cmibq.errors import DataError
from cmibq.report.collect import load_runs


def test_runs_are_grouped_by_the_model_they_started_from(results: Path) -> None:
    runs = load_runs(results)
    assert len(runs) == 34
    assert {run.group for run in runs} == {"planted", "plain"}
    assert {run.method for run in runs} == {"float", "rtn", "smoothquant", "awq", "mbq"}
    run = next(r for r in runs if r.folder.name == "planted-awq-w2g32")
    assert run.setting == (2, 32, 16)
    assert run.find_image(run.samples[0]).exists()


@pytest.fixture
def one(results: Path, tmp_path: Path) -> Path:
    """A folder with one result that a test may spoil."""
    shutil.copytree(results / "planted-awq-w2g32", tmp_path / "awq")
    return tmp_path


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no result\.json below .*; run 'cmibq eval'"):
        load_runs(tmp_path)


def test_malformed_files_are_named(one: Path) -> None:
    samples = one / "awq" / "samples.jsonl"
    lines = samples.read_text().splitlines()
    samples.write_text("\n".join([lines[0], lines[1][:-5], *lines[2:]]))
    with pytest.raises(DataError, match=r"samples\.jsonl, line 2"):
        load_runs(one)
    samples.write_text("")
    with pytest.raises(DataError, match=r"samples\.jsonl is empty"):
        load_runs(one)
    (one / "awq" / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result\.json, line 1"):
        load_runs(one)


def test_missing_fields_are_named(one: Path) -> None:
    file = one / "awq" / "result.json"
    result = json.loads(file.read_text())
    del result["w_bit"], result["method"]
    file.write_text(json.dumps(result))
    with pytest.raises(DataError, match="lacks method, w_bit"):
        load_runs(one)


def test_the_same_run_twice(one: Path) -> None:
    shutil.copytree(one / "awq", one / "again")
    with pytest.raises(DataError, match="both hold awq at"):
        load_runs(one)
