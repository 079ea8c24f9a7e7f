"""Searches on every kind of calibration data: several images, none, pairs, text between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmibq.errors import DataError
from cmibq.io import load as load_package
from cmibq.ptq import quantize
from cmibq.recipe import QuantRecipe
from tests.fixtures import SHAPES, WORDS, make_model, make_processor


@pytest.fixture(scope="module")
def long_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with room for 1024 tokens."""
    out = tmp_path_factory.mktemp("long")
    make_model(0, **SHAPES["mha"] | {"max_position_embeddings": 1024}).save_pretrained(out)
    make_processor().save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def mixed(items_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Messages with two images, one image and none; pictures are those of `items_path`."""
    folder = items_path.parent / "images"
    pictures = sorted(str(path) for path in folder.iterdir())
    told = {"role": "assistant", "content": "red one"}
    items = []
    for number in range(9):
        images = [{"type": "image", "path": p} for p in pictures[number : number + number % 3]]
        asked = [*images, {"type": "text", "text": "which digit is left ?"}]
        items.append({"messages": [{"role": "user", "content": asked}, told]})
    path = tmp_path_factory.mktemp("mixed") / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, items)))
    return path


def run(model: Path, data: Path, out: Path, **more: Any) -> dict[str, Any]:
    recipe = {
        "model_args": f"pretrained={model}", "data_path": str(data), "n_samples": 9, "n_grid": 3,
        "run_process": True, "method": "mbq", "reweight": True, "w_group": 32, "w_bit": 4,
        "output_path": str(out), "verify": False,
    }  # fmt: skip
    made = quantize(QuantRecipe(**recipe | more), progress=False)
    assert all(error is not None for error in made.layer_errors.values())
    found: dict[str, Any] = load_package(out).manifest.metadata["calibration"]
    return found


@pytest.mark.parametrize("variant", ["default", "reference"])
def test_items_with_two_images_one_and_none(
    long_llava: Path, mixed: Path, tmp_path: Path, variant: str
) -> None:
    found = run(long_llava, mixed, tmp_path / "out", variant=variant)
    assert (found["samples"], found["image_tokens"]) == (9, 9 * 4)


def test_items_without_any_image(long_llava: Path, mixed: Path, tmp_path: Path) -> None:
    lines = [line for line in mixed.read_text().splitlines() if '"image"' not in line]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(lines))
    found = run(long_llava, path, tmp_path / "out", reweight=False)
    assert (found["samples"], found["image_tokens"]) == (3, 0)
    with pytest.raises(DataError, match="image"):
        run(long_llava, path, tmp_path / "weighted")


def test_pairs(long_llava: Path, mixed: Path, tmp_path: Path) -> None:
    alone = run(long_llava, mixed, tmp_path / "alone")
    found = run(long_llava, mixed, tmp_path / "out", few_shot_format=True)
    assert found["samples"] == 5
    for name in ("tokens", "image_tokens", "answer_tokens"):
        assert found[name] == alone[name]
    published = run(long_llava, mixed, tmp_path / "ref", few_shot_format=True, variant="reference")
    assert published["samples"] == 4


def test_text_between(long_llava: Path, mixed: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps(" ".join(rng.choice(WORDS, 600))) for _ in range(8)))
    more = {"interleave_format": True, "text_data_path": str(texts)}
    alone = run(long_llava, mixed, tmp_path / "alone")
    found = run(long_llava, mixed, tmp_path / "out", **more)
    assert found["samples"] == 5
    assert found["tokens"] == alone["tokens"] + 4 * 512
    assert found["answer_tokens"] == alone["answer_tokens"] + 4 * 512
    scales = run(long_llava, mixed, tmp_path / "again", **more, variant="reference")
    assert scales["samples"] == 4


def test_a_sample_longer_than_the_context(llava_dir: Path, mixed: Path, tmp_path: Path) -> None:
    items = [json.loads(line) for line in mixed.read_text().splitlines()]
    items[4]["messages"][0]["content"][-1]["text"] = "which digit " * 100
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, items)))
    with pytest.raises(DataError, match=r"line 5: \d+ tokens, and the model takes 128; shorten"):
        run(llava_dir, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = run(llava_dir, path, tmp_path / "out", bad_items="skip")
    assert found["samples"] == 8
