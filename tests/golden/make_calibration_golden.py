"""Write calibration.json: what the published code makes of the data of `calibration_data`.

Run it with a Python that has torch, datasets and this repository:
``python tests/golden/make_calibration_golden.py /path/to/MBQ``. Nothing of the published code is
kept: its two readers are imported, its two joining methods run on our token rows.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fixtures import make_processor
from tests.golden.calibration_data import COUNTS, digest, rows_by_id, write_all


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def _methods(path: Path) -> dict[str, Any]:
    """Return the joining methods of a model class, without importing its module."""
    names = ("few_shot_data_samples", "interleave_data_samples")
    classes = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
    body: list[ast.stmt] = [
        n for n in classes[0].body if isinstance(n, ast.FunctionDef) and n.name in names
    ]
    space: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(body=body, type_ignores=[]), str(path), "exec"), space)
    return space


class _Model:
    """What the reader asks of a model: rows of tokens, padded at the left, and joining them."""

    def __init__(self, rows: dict[str, Any], tokenizer: Any, methods: dict[str, Any]) -> None:
        self.rows, self.tokenizer, self.methods = rows, tokenizer, methods

    def preprocess_data(self, images: Any, item: Any) -> Any:
        return self.rows[item["id"]]

    def data_collator(self, rows: list[Any]) -> Any:
        shape = len(rows), max(map(len, rows))
        made = {
            "input_ids": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, -100),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "pixel_values": torch.zeros(len(rows), 1),
            "image_grid_thw": torch.ones(len(rows), 3),
        }
        for i, row in enumerate(rows):
            made["input_ids"][i, -len(row) :] = torch.from_numpy(row.ids)
            labels = np.where(row.answer, row.ids, -100)
            made["labels"][i, -len(row) :] = torch.from_numpy(labels)
            made["attention_mask"][i, -len(row) :] = 1
        return made

    def few_shot_data_samples(self, samples: Any) -> Any:
        return self.methods["few_shot_data_samples"](self, samples)

    def interleave_data_samples(self, samples: Any, pure_text: Any = None) -> Any:
        return self.methods["interleave_data_samples"](self, samples, pure_text=pure_text)

    def generate_input(self, samples: Any) -> Any:
        return samples, None


def main(upstream: Path) -> None:
    """Run the published readers and write the digests."""
    import datasets

    coco = _module(upstream / "qmllm/calibration/coco_vl.py")
    pile = _module(upstream / "qmllm/calibration/pileval.py")
    folder = Path(tempfile.mkdtemp())
    items, long_texts, texts = write_all(folder)
    tokenizer = make_processor().tokenizer
    tokenizer.encode = lambda text: tokenizer(text)["input_ids"]
    methods = _methods(upstream / "qmllm/models/qwen2_vl/qwen2_vl.py")
    model = _Model(rows_by_id(items), tokenizer, methods)

    def reads(file: Path) -> Any:
        return lambda path, split: datasets.load_dataset(
            "json", data_files={split: str(file)}, split=split
        )

    coco.load_dataset, pile.load_dataset = reads(long_texts), reads(texts)
    found = {}
    for name, count in COUNTS.items():
        if name == "pileval":
            rows = pile.get_calib_dataset(tokenizer=tokenizer, n_samples=count)[0]["input_ids"]
            found[name] = digest([(r.tolist(), r.tolist()) for r in rows])
            continue
        made = coco.get_multimodal_calib_dataset(
            str(items), str(folder), model, n_samples=count, text_data_path="x",
            few_shot_format=name == "few_shot_format",
            interleave_format=name == "interleave_format",
        )[0]  # fmt: skip
        masks = made["attention_mask"].bool()
        pairs = zip(made["input_ids"], made["labels"], masks, strict=True)
        found[name] = digest([(i[m].tolist(), lab[m].tolist()) for i, lab, m in pairs])
    target = Path(__file__).with_name("calibration.json")
    target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
