from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cmibq.data import Message, check_images, read_items, read_records
from cmibq.data.texts import read_texts
from cmibq.errors import ConfigError, DataError
from cmibq.recipe import parse_model_args
from cmibq.recipe.places import hub_folder


def one(folder: Path, item: Any) -> Any:
    path = folder / "items.json"
    path.write_text(json.dumps([item]))
    return read_items(path)[0]


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    return out.getvalue()


ASK = {"role": "user", "content": "<image>\nwhat ?"}
TOLD = {"role": "assistant", "content": "red"}


@pytest.mark.parametrize(
    ("item", "images", "asked"),
    [
        (
            {"image": "coco/a.jpg", "conversations": [
                {"from": "human", "value": "what ?\n<image>"}, {"from": "gpt", "value": "red"}]},
            ["coco/a.jpg"], "what ?\n<image>",
        ),
        ({"images": ["a.png"], "messages": [ASK, TOLD]}, ["a.png"], "<image>\nwhat ?"),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image", "image": "a.png", "text": None},
                {"type": "text", "text": "what ?"},
                {"type": "image_url", "image_url": {"url": "b.png"}}]}, TOLD]},
            ["a.png", "b.png"], "<image>\nwhat ?\n<image>",
        ),
        (
            {"images": ["a.png", {"path": "b.png", "bytes": None}], "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "image"}]}, TOLD]},
            ["a.png", "b.png"], "<image>\n<image>",
        ),
        ({"messages": [{"role": "user", "content": "what ?"}, TOLD]}, [], "what ?"),
        (
            {"image": ["a.png", "b.png"], "question": "what ?",
             "answers": ["blue", {"answer": "red"}, "red"]},
            ["a.png", "b.png"], "<image>\n<image>\nwhat ?",
        ),
        ({"question": "what ?", "answer": "red"}, [], "what ?"),
    ],
)  # fmt: skip
def test_every_shape_is_one_conversation(
    tmp_path: Path, item: Any, images: list[str], asked: str
) -> None:
    sample = one(tmp_path, item)
    assert sample.messages == (Message("user", asked), Message("assistant", "red"))
    assert sample.images == tuple(tmp_path / name for name in images)
    assert sample.raw["image"] == images


def test_pictures_inside_a_file_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMIBQ_CACHE", str(tmp_path / "cache"))
    coded = "data:image/png;base64," + base64.b64encode(picture()).decode()
    part = {"type": "image_url", "image_url": {"url": coded}}
    sample = one(tmp_path, {"messages": [{"role": "user", "content": [part]}, TOLD]})
    assert sample.images[0].parent == tmp_path / "cache" / "images"
    assert sample.images[0].read_bytes() == picture()
    check_images([sample])
    (tmp_path / "b c.png").write_bytes(picture())
    named = (tmp_path / "b c.png").as_uri()
    sample = one(tmp_path, {"image": named, "question": "?", "answer": "x"})
    check_images([sample])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turn 0 is"),
        ({"messages": [{"role": "user", "content": 3}]}, "turn 0 is"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "has the part"),
        ({"messages": [{"role": "user", "content": ["<image>"]}]}, "write an image part"),
        ({"messages": [ASK, TOLD]}, "1 image marks but 0 images"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, TOLD]}, "but 0 images"),
        ({"image": "http://x/a.png", "question": "?", "answer": "x"}, "nothing is downloaded"),
        ({"image": "data:image/png;base64,%%", "question": "?", "answer": "x"}, "not base64"),
        ({"image": {"bytes": None}, "question": "?", "answer": "x"}, "image is None"),
        ({"image": "a.png", "question": 3, "answer": "x"}, "must be texts"),
        ({"question": "?"}, "turn 1 is an empty answer"),
        ({"messages": [{"role": "user", "content": "?"}, {**TOLD, "content": " \n"}]}, "is an emp"),
        ({"messages": [{"role": "user", "content": "?"}]}, "no answer"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, item: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"item 0: .*{message}"):
        one(tmp_path, item)


def test_bad_records_can_be_collected(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    good = json.dumps({"question": "?", "answer": "x"})
    path.write_text(f"{good}\n{{}}\n{good}\n")
    bad: list[DataError] = []
    assert [s.where[-6:] for s in read_items(path, bad=bad)] == ["line 1", "line 3"]
    assert "line 2: no conversations" in str(bad[0])


def test_parquet_rows_and_compressed_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
    monkeypatch.setenv("CMIBQ_CACHE", str(tmp_path / "cache"))
    turn = [
        {
            "role": "user",
            "content": [{"type": "image", "text": None}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    rows = [{"messages": turn, "images": [{"bytes": picture(), "path": None}]}] * 2
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "val.parquet")
    samples = read_items(tmp_path / "val.parquet")
    assert samples[1].where.endswith("val.parquet, row 1")
    assert samples[0].messages[0].text == "<image>\n?"
    check_images(samples)
    (tmp_path / "bad.parquet").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="is no parquet file"):
        read_records(tmp_path / "bad.parquet")
    whole = (tmp_path / "val.parquet").read_bytes()
    (tmp_path / "bad.parquet").write_bytes(whole[:40] + bytes(100) + whole[140:])
    with pytest.raises(DataError, match=r"bad\.parquet is no parquet file, or is damaged"):
        read_records(tmp_path / "bad.parquet")
    with pyarrow.CompressedOutputStream(str(tmp_path / "t.jsonl.zst"), "zstd") as out:
        out.write(b'{"text": "a"}\n{"text": "b"}\n')
    assert [s.raw["text"] for s in read_texts(str(tmp_path / "t.jsonl.zst"))] == ["a", "b"]


def test_names_of_the_hub_are_looked_up_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / "datasets--mit-han-lab--pile-val-backup" / "snapshots" / "abc"
    assert hub_folder("mit-han-lab/pile-val-backup", "dataset") is None
    with pytest.raises(DataError, match="nor in the Hugging Face cache"):
        read_texts("mit-han-lab/pile-val-backup")
    snapshot.mkdir(parents=True)
    (snapshot / "dataset_infos.json").write_text("{}")
    (snapshot / "val.jsonl").write_text('{"text": "a"}\n')
    (snapshot / "test.jsonl").write_text('{"text": "b"}\n')
    assert [s.raw["text"] for s in read_texts("mit-han-lab/pile-val-backup")] == ["a"]
    (snapshot / "val.jsonl").unlink()
    (snapshot / "other.jsonl").write_text("")
    with pytest.raises(DataError, match=r"a folder with 2 data files \(other.jsonl, test.jsonl\)"):
        read_texts("mit-han-lab/pile-val-backup")
    model = tmp_path / "models--OpenGVLab--InternVL2-8B"
    (model / "snapshots" / "123").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("123\n")
    assert parse_model_args('pretrained="OpenGVLab/InternVL2-8B"').name == "123"


def test_placeholders_of_shipped_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stands for your own file; give --data_path FILE"):
        read_items("your/coco/caption/path")
    (tmp_path / "a.json").write_text('[{"question": "?", "answer": "x"}]')
    with pytest.raises(DataError, match="stands for your own; give --image_folder"):
        read_items(tmp_path / "a.json", "your/coco/image/folder")
    with pytest.raises(ConfigError, match="stands for your own model folder"):
        parse_model_args("pretrained=your/model")
