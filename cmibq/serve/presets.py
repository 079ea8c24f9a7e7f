"""Questions to begin with: pictures, what is asked about them, and what would be right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmibq.data.base import open_image
from cmibq.errors import DataError
from cmibq.fileio import read_json

__all__ = ["FILE", "Preset", "read_presets"]

FILE = "presets.json"
_KEYS = ("image", "question", "answer", "note")


@dataclass(frozen=True)
class Preset:
    """A question about a picture.

    Args:
        image: the picture.
        question: what is asked.
        answer: what is right; empty if nobody said so.
        note: what there is to see, for people.
    """

    image: Path
    question: str
    answer: str = ""
    note: str = ""


def read_presets(path: Path) -> tuple[Preset, ...]:
    """Read a JSON list of presets; paths of images start from its folder.

    Args:
        path: the file.

    Raises:
        DataError: it is missing or damaged, an item has another key or no question, or its image
            cannot be read; names the item.
    """
    items = read_json(path)
    if not isinstance(items, list):
        raise DataError(f"{path}: write a list of objects with {', '.join(_KEYS)}")
    made = []
    for number, item in enumerate(items, 1):
        where = f"{path}, item {number}"
        texts = isinstance(item, dict) and all(isinstance(v, str) for v in item.values())
        if not texts or not set(item) <= set(_KEYS):
            raise DataError(f"{where} is {item!r}; write texts under {', '.join(_KEYS)}")
        if not item.get("image") or not item.get("question", "").strip():
            raise DataError(f"{where} has no image or no question; write both")
        image = path.parent / item["image"]
        with open_image(image, where) as opened:
            opened.load()
        rest = {key: item.get(key, "") for key in ("answer", "note")}
        made.append(Preset(image.resolve(), item["question"].strip(), **rest))
    return tuple(made)
