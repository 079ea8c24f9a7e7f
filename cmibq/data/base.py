"""Items of LLaVA-format files, checked one by one; errors name the file and the line or item."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmibq.errors import DataError
from cmibq.fileio import read_json
from cmibq.recipe import QuantRecipe
from cmibq.registry import Registry

if TYPE_CHECKING:
    from PIL.Image import Image

    from cmibq.data.prompts import Encoded

__all__ = [
    "CALIBRATIONS",
    "IMAGE",
    "CalibSample",
    "Calibration",
    "Message",
    "check_images",
    "open_image",
    "read_items",
    "read_json_items",
]

IMAGE = "<image>"
_LIMIT = 1 << 33
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_ROLES["system"] = "system"


class Message(NamedTuple):
    """One turn: role ``user``, ``assistant`` or ``system``; text with ``<image>`` marks."""

    role: str
    text: str


@dataclass(frozen=True)
class CalibSample:
    """One conversation about images.

    Args:
        images: image files, in the order of the ``<image>`` marks.
        messages: turns; empty for plain text.
        id: the item's own id, or its place in the file.
        raw: the item as read, with whatever other keys it has.
        where: file and line or item, for messages.
    """

    images: tuple[Path, ...]
    messages: tuple[Message, ...]
    id: str
    raw: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    where: str = ""


@dataclass(frozen=True)
class Calibration:
    """A kind of calibration data.

    Args:
        read: choose samples and check them and their files; needs no model.
        encode: turn samples into tokens, given the model's processor.
    """

    read: Callable[[QuantRecipe], list[CalibSample]]
    encode: Callable[[Sequence[CalibSample], Any, QuantRecipe], list[Encoded]]


CALIBRATIONS: Registry[Calibration] = Registry("calibration data")
"""Value of ``calib_data`` -> how it is read."""


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    yield where, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{where}: not valid JSON ({error})") from error


def read_json_items(path: str | os.PathLike[str]) -> list[tuple[str, Any]]:
    """Read the items of a ``.json`` list or a ``.jsonl`` file.

    Args:
        path: file; ``.jsonl`` has one item per line, blank lines are skipped.

    Returns:
        Pairs of where an item stands ("items.jsonl, line 7") and the item.

    Raises:
        DataError: the file is missing, empty or of another kind, or a line is not valid JSON.
    """
    file = Path(path).expanduser()
    if not str(path):
        raise DataError("data_path is empty; name a .json or .jsonl file of items")
    if not file.is_file():
        raise DataError(f"data_path {str(path)!r} is not a file; check the path")
    if file.suffix == ".jsonl":
        items = list(_json_lines(file))
    elif file.suffix == ".json":
        content = read_json(file, limit=_LIMIT)
        if not isinstance(content, list):
            raise DataError(f"{file}: a {type(content).__name__} at the top; write a list of items")
        items = [(f"{file}, item {number}", item) for number, item in enumerate(content)]
    else:
        raise DataError(f"data_path {str(path)!r} ends in {file.suffix!r}; allowed: .json, .jsonl")
    if not items:
        raise DataError(f"{file} has no items")
    return items


def _images(where: str, item: dict[str, Any], folder: Path) -> tuple[Path, ...]:
    named = item.get("image", [])
    named = [named] if isinstance(named, str) else named
    if named is None:
        named = []
    if not isinstance(named, list) or not all(isinstance(n, str) and n for n in named):
        raise DataError(f"{where}: image is {named!r}; write a path or a list of paths")
    return tuple(folder / name for name in named)


def _messages(where: str, item: dict[str, Any]) -> tuple[Message, ...]:
    turns = item.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: no conversations; write a list of {{'from', 'value'}} turns")
    made = []
    for number, turn in enumerate(turns):
        fields = turn if isinstance(turn, dict) else {}
        role, text = fields.get("from"), fields.get("value")
        if not isinstance(role, str) or role not in _ROLES or not isinstance(text, str):
            raise DataError(
                f"{where}: turn {number} is {turn!r}; write {{'from': 'human' or 'gpt' or 'system',"
                " 'value': text}"
            )
        if IMAGE in text and _ROLES[role] == "assistant":
            raise DataError(
                f"{where}: turn {number} has {IMAGE} in an answer; move it to a question"
            )
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise DataError(f"{where}: turn {number} has half a character (a lone surrogate)")
        made.append(Message(_ROLES[role], text))
    if not any(m.role == "assistant" and m.text.strip() for m in made):
        raise DataError(f"{where}: no answer; add a turn {{'from': 'gpt', 'value': text}}")
    if made[-1].role != "assistant" and IMAGE in made[-1].text:
        raise DataError(f"{where}: the last question has an image but no answer; add the answer")
    return tuple(made)


def _sample(where: str, item: Any, folder: Path) -> CalibSample:
    if not isinstance(item, dict):
        raise DataError(f"{where}: a {type(item).__name__}; write an object with conversations")
    images, messages = _images(where, item, folder), _messages(where, item)
    marks = sum(m.text.count(IMAGE) for m in messages)
    if marks != len(images):
        raise DataError(
            f"{where}: {len(images)} images but {marks} {IMAGE} marks in the conversations; write"
            " one mark per image where it belongs"
        )
    return CalibSample(images, messages, str(item.get("id", where)), item, where)


def read_items(
    path: str | os.PathLike[str], image_folder: str | os.PathLike[str] = ""
) -> list[CalibSample]:
    """Read and check a LLaVA-format file; images are not opened (see `check_images`).

    Args:
        path: ``.json`` or ``.jsonl`` of ``{"image": path or list, "conversations": [{"from":
            "human" or "gpt", "value": text}, ...]}``; ``image`` may be absent.
        image_folder: folder that image paths start from; empty = the folder of `path`.

    Raises:
        DataError: naming the file and the line or item.
    """
    items = read_json_items(path)
    folder = (
        Path(image_folder).expanduser() if str(image_folder) else Path(path).expanduser().parent
    )
    if not folder.is_dir():
        raise DataError(f"image_folder {str(image_folder)!r} is not a folder; check the path")
    return [_sample(where, item, folder) for where, item in items]


@contextlib.contextmanager
def open_image(path: Path, where: str = "") -> Iterator[Image]:
    """Open an image; whatever goes wrong until it is closed again is told with its name.

    Args:
        path: the file.
        where: the item that names it, for messages.

    Raises:
        DataError: the file is missing, truncated, too large or no image.
    """
    from PIL import Image

    place = f"{where}: " if where else ""
    if not path.is_file():
        raise DataError(f"{place}image {str(path)!r} does not exist; check image_folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{place}image {str(path)!r} cannot be read ({error}); replace it"
        ) from error


def check_images(samples: Iterable[CalibSample]) -> None:
    """Decode every image that the samples name.

    Raises:
        DataError: an image is missing, truncated or no image; names it and the item.
    """
    seen: set[Path] = set()
    for sample in samples:
        for path in sample.images:
            if path in seen:
                continue
            seen.add(path)
            with open_image(path, sample.where) as image:
                image.load()
