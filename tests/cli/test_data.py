from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmibq.cli.main import main


def test_a_good_file(items_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(items_path)]) == 0
    printed = capsys.readouterr().out
    assert "use as         calib_data coco" in printed
    assert "records        24\n" in printed
    assert "images         16 files; records by number of images: 1: 24" in printed
    assert "sizes          24x20 (16)" in printed
    assert "problems       0" in printed
    assert printed.count("user: <image>") == 3


def test_lengths_in_the_tokens_of_a_model(
    items_path: Path, llava_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "check", "--json", str(items_path), "--model", str(llava_dir)]
    assert main([*words, "--samples", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lengths"]["image tokens"] == {"least": 4, "median": 4.0, "most": 4, "sum": 96}
    assert found["lengths"]["answer tokens"]["least"] == 2
    assert found["problems"] == []
    assert len(found["samples"]) == 1
    assert found["samples"][0]["turns"][0].startswith("user: <image>")


def test_everything_that_is_wrong_is_listed(
    items_path: Path, llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = json.loads(items_path.read_text())[:5]
    items[1]["image"] = "nowhere.png"
    items[2]["conversations"][1]["value"] = ""
    items[3]["conversations"][0]["value"] += " red" * 200
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, items)))
    words = ["data", "check", str(path), "--image_folder", str(items_path.parent)]
    assert main([*words, "--model", str(llava_dir)]) == 1
    printed = capsys.readouterr().out
    assert "usable         2\n" in printed
    assert "problems       3\n" in printed
    assert "line 3: turn 1 is an empty answer" in printed
    assert "line 2: image " in printed
    assert "tokens, and the model takes 128" in printed
    as_list = path.with_suffix(".json")
    as_list.write_text(json.dumps(items, indent=1))
    at = as_list.read_text().splitlines().index('  "image": "nowhere.png",') - 1  # of its {
    assert main([*words[:2], str(as_list), *words[3:]]) == 1
    assert f"items.json, item 1 (line {at}): image " in capsys.readouterr().out
    assert main([*words, "--problems", "1"]) == 1
    assert "and 1 more; --problems shows them" in capsys.readouterr().out


def test_texts(tmp_path: Path, llava_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("which digit is left\nred\n")
    assert main(["data", "check", str(path), "--model", str(llava_dir)]) == 0
    printed = capsys.readouterr().out
    assert "calib_data pileval" in printed
    assert "tokens         1 to 4, median 2.5, sum 5" in printed


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["check"], 2, "name a file: cmibq data check FILE"),
        (["chek", "x"], 2, "unknown action 'chek'"),
        (["check", "x.json", "--modle", "y"], 2, "unknown flag '--modle'; did you mean '--model'"),
        (["check", "x.json"], 1, "data_path 'x.json' is not a file"),
        (["check", "x.json", "--model", "nowhere"], 1, "model folder 'nowhere' does not exist"),
    ],
)
def test_errors(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *words]) == code
    assert message in capsys.readouterr().err
