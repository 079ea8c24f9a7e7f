from __future__ import annotations

import json
from pathlib import Path

import pytest

import cmibq
from cmibq.cli.main import main
from cmibq.nn import iter_packed
from tests.eval.packages import write_package


@pytest.fixture(scope="module")
def package(llava_dir: Path, items_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(
        llava_dir, tmp_path_factory.mktemp("verify") / "w8", items_path, bits=8
    ).path


def test_numbers_captions_and_file(
    package: Path,
    llava_dir: Path,
    items_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "numbers.json"
    words = ["verify", str(package), "--against", str(llava_dir), "--data_path", str(items_path)]
    assert main([*words, "--output_path", str(out), "--n_samples", "3"]) == 0
    told = capsys.readouterr().out
    assert "nats, same top token at" in told
    assert "its own probe: bit for bit" in told
    assert "quantised: " in told
    found = json.loads(out.read_text())
    assert found["ok"]
    assert found["samples"] == 3
    assert found["kl"] < 0.05


def test_the_source_is_known_and_limits_can_be_given(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(package)]) == 0
    assert main(["verify", str(package), "--max_kl", "0"]) == 3
    assert "more than 0 that 8-bit" in capsys.readouterr().err


def test_what_is_missing_is_told(llava_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 2
    assert "name a folder: cmibq verify DIR" in capsys.readouterr().err
    assert main(["verify", str(llava_dir)]) == 2
    assert "pass --against FLOAT_FOLDER" in capsys.readouterr().err
    assert main(["verify", str(llava_dir), "--min_top1", "2"]) == 2


def test_load_opens_packages(package: Path) -> None:
    assert len(list(iter_packed(cmibq.load(package)))) == 14
