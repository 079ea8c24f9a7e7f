"""A file of items as a task of lmms-eval: two small files beside the documents, all local."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

from cmibq.data import read_items
from cmibq.errors import ConfigError, DataError
from cmibq.eval.grade import right_answers
from cmibq.fileio import atomic_write

__all__ = ["write_task"]


def _template(name: str, values: dict[str, str]) -> bytes:
    text = resources.files("cmibq.eval").joinpath(f"task/{name}.txt").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text.encode()


def _rows(items: str, image_folder: str) -> list[str]:
    """Return the documents of a task, one JSON object each."""
    rows = []
    for item in read_items(items, image_folder):
        asked = [m.text for m in item.messages if m.role == "user"]
        if len(asked) != 1 or len(item.messages) != 2:
            raise DataError(f"{item.where}: a task asks one question per item; split it")
        missing = [str(p) for p in item.images if not p.is_file()]
        if missing:
            raise DataError(
                f"{item.where}: image {missing[0]!r} does not exist; check image_folder"
            )
        row = {
            "id": item.id,
            "question": asked[0].strip(),
            "answers": right_answers(item),
            "images": [str(path.resolve()) for path in item.images],
        }
        rows.append(json.dumps(row, ensure_ascii=False))
    return rows


def write_task(
    items: str,
    out: str,
    *,
    name: str,
    metric: str = "exact_match",
    image_folder: str = "",
    max_new_tokens: int = 16,
) -> int:
    """Write a folder that ``cmibq eval --include_path`` and lmms-eval itself take tasks from.

    It holds ``NAME.yaml``, ``utils.py`` (which needs lmms-eval only) and ``NAME.jsonl``, the
    questions with the paths of their images.

    Args:
        items: questions with answers, see `cmibq.data.read_items`; of one turn each.
        out: the folder; files of the same names are replaced.
        name: name of the task.
        metric: ``"exact_match"`` or ``"vqa"``.
        image_folder: folder that image paths start from; empty = that of `items`.
        max_new_tokens: most tokens of an answer.

    Returns:
        The number of questions.

    Raises:
        ConfigError: `name` or `metric` cannot be used.
        DataError: an item cannot be used; names it.
        StorageError: disk full or not permitted.
    """
    if not re.fullmatch(r"\w+", name):
        raise ConfigError(f"name is {name!r}; allowed are letters, digits and _")
    if metric not in ("exact_match", "vqa"):
        raise ConfigError(f"metric is {metric!r}; allowed are exact_match, vqa")
    rows = _rows(items, image_folder)
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    documents = folder / f"{name}.jsonl"
    values = {
        "NAME": name,
        "METRIC": metric,
        "TOKENS": str(max_new_tokens),
        "ITEMS": json.dumps(str(documents.resolve())),
    }
    files = {
        documents: "\n".join(rows).encode() + b"\n",
        folder / "utils.py": _template("utils", values),
        folder / f"{name}.yaml": _template("task", values),
    }
    for path, content in files.items():
        with atomic_write(path) as file:
            file.write(content)
    return len(rows)
