"""A look at a file of items: what is in it, how long it is, and what cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cmibq.data.base import CalibSample, open_image
from cmibq.data.lengths import fitting
from cmibq.data.prompts import Encoded, encode
from cmibq.data.records import find_file, item_lines, read_records
from cmibq.data.shapes import read_items
from cmibq.data.texts import read_texts
from cmibq.errors import DataError

__all__ = ["Survey", "are_texts", "survey"]


@dataclass
class Survey:
    """What a file holds.

    Args:
        path: the file.
        kind: ``"coco"`` (conversations) or ``"pileval"`` (texts).
        records: number of records, unusable ones included.
        samples: what can be used.
        problems: what is wrong with the others, each with its line, item or row.
        sizes: how often an image has a size; every image file counts once.
        lengths: name -> one number per usable sample: ``characters``, and with a model ``tokens``,
            ``answer tokens``, ``image tokens``.
    """

    path: Path
    kind: str
    records: int
    samples: list[CalibSample] = field(repr=False)
    problems: list[str]
    sizes: Counter[tuple[int, int]]
    lengths: dict[str, list[int]]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        per_sample = Counter(len(s.images) for s in self.samples)
        return {
            "file": str(self.path),
            "kind": self.kind,
            "records": self.records,
            "usable": len(self.samples),
            "images": sum(self.sizes.values()),
            "images_per_sample": {str(n): count for n, count in sorted(per_sample.items())},
            "sizes": {f"{w}x{h}": count for (w, h), count in self.sizes.most_common()},
            "lengths": {name: _spread(values) for name, values in self.lengths.items()},
            "problems": self.problems,
        }


def _spread(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    found = np.asarray(values)
    return {
        "least": int(found.min()),
        "median": float(np.median(found)),
        "most": int(found.max()),
        "sum": int(found.sum()),
    }


def are_texts(records: Sequence[tuple[str, Any]]) -> bool:
    """Whether the first record is a plain text, as ``pileval`` takes them."""
    first = records[0][1]
    return isinstance(first, str) or (
        isinstance(first, dict)
        and "text" in first
        and not {"conversations", "messages", "question"} & first.keys()
    )


def _keep(
    samples: Sequence[CalibSample], problems: list[str], test: Callable[[CalibSample], None]
) -> list[CalibSample]:
    """Return samples that pass; note the fault of others."""
    kept = []
    for sample in samples:
        try:
            test(sample)
        except DataError as error:
            problems.append(str(error))
        else:
            kept.append(sample)
    return kept


def _open_images(sizes: dict[Path, tuple[int, int]]) -> Callable[[CalibSample], None]:
    def test(sample: CalibSample) -> None:
        for path in sample.images:
            if path not in sizes:
                with open_image(path, sample.where) as image:
                    image.load()
                    sizes[path] = image.size

    return test


def _said(sample: CalibSample) -> str:
    return sample.raw.get("text") or "".join(m.text for m in sample.messages)


def survey(
    path: str,
    image_folder: str = "",
    *,
    processor: Any = None,
    context: int | None = None,
) -> Survey:
    """Read a file, check every record and open every image.

    Args:
        path: see `cmibq.data.records.find_file`.
        image_folder: folder that image paths start from; empty = that of the file.
        processor: the model's processor, for lengths in tokens; None leaves them out.
        context: most tokens the model takes.

    Raises:
        DataError: the file itself cannot be read.
    """
    records = read_records(path)
    texts = are_texts(records)
    bad: list[DataError] = []
    samples = read_texts(path) if texts else read_items(path, image_folder, bad=bad)
    problems = [str(error) for error in bad]
    opened: dict[Path, tuple[int, int]] = {}
    samples = _keep(samples, problems, _open_images(opened))
    lengths: dict[str, list[int]] = {}
    if processor is not None:
        counted: list[Encoded] = []

        def count(sample: CalibSample) -> None:
            counted.extend(fitting([_tokens(sample, processor)], None if texts else context))

        samples = _keep(samples, problems, count)
        lengths["tokens"] = [len(e) for e in counted]
        lengths["answer tokens"] = [int(e.answer.sum()) for e in counted]
        lengths["image tokens"] = [int(e.vision.sum()) for e in counted]
    lengths = {"characters": [len(_said(s)) for s in samples], **lengths}
    sizes = Counter(opened.values())
    kind, file = "pileval" if texts else "coco", find_file(path)
    if problems and file.suffix == ".json":
        lines = {place: line for (place, _), line in zip(records, item_lines(file), strict=True)}
        problems = [_with_line(text, lines) for text in problems]
    return Survey(file, kind, len(records), samples, problems, sizes, lengths)


def _with_line(problem: str, lines: Mapping[str, int]) -> str:
    """Put the line behind the item that a message begins with."""
    place, mark, rest = problem.partition(": ")
    return f"{place} (line {lines[place]}){mark}{rest}" if place in lines else problem


def _tokens(sample: CalibSample, processor: Any) -> Encoded:
    if sample.messages:
        return encode([sample], processor)[0]
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = np.asarray(tokenizer(sample.raw["text"].strip())["input_ids"], np.int64)
    return Encoded(ids, np.ones(len(ids), np.bool_), np.zeros(len(ids), np.bool_), sample)
