"""Record shapes: what LLaVA, ShareGPT4V, Hugging Face and VQA files call a conversation."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cmibq.data.base import IMAGE, CalibSample, Message
from cmibq.data.records import find_file, read_records
from cmibq.errors import DataError
from cmibq.fileio import atomic_write
from cmibq.recipe.places import placeholder

__all__ = ["image_cache", "read_items", "to_sample"]

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_ROLES["system"] = "system"

Item = Mapping[str, Any]
_Found = tuple[list[Any], list[Message]]
"""Image sources in the order of their marks, and turns."""


def image_cache() -> Path:
    """Return where pictures that lie inside data files are unpacked to."""
    home = os.environ.get("CMIBQ_CACHE") or "~/.cache/cmibq"
    return Path(home).expanduser() / "images"


def _unpacked(content: bytes) -> Path:
    """Write a picture to the cache under the hash of its content; return the file."""
    path = image_cache() / f"{hashlib.sha256(content).hexdigest()}.img"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
    return path


def _image(where: str, source: Any, folder: Path) -> Path:
    """Return the file of an image source: a path, a file or data address, or bytes."""
    if isinstance(source, dict):
        if isinstance(source.get("bytes"), bytes):
            return _unpacked(source["bytes"])
        source = source.get("path") or source.get("url")
    if not isinstance(source, str) or not source:
        raise DataError(f"{where}: image is {source!r}; write a path or a list of paths")
    if source.startswith(("http://", "https://")):
        raise DataError(
            f"{where}: image {source!r} is a web address and nothing is downloaded; save it below"
            " image_folder and write its path"
        )
    if source.startswith("data:"):
        head, _, data = source.partition(",")
        try:
            return _unpacked(base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError) as error:
            raise DataError(f"{where}: image {head!r} is not base64 ({error})") from error
    if source.startswith("file://"):
        return Path(unquote(urlsplit(source).path))
    return folder / source


def _shown(source: Any, path: Path) -> str:
    """Return how an image is called in tables: as the record does, unless it lies inside it."""
    named = source if isinstance(source, str) else source.get("path")
    return named if named and not named.startswith("data:") else str(path)


def _listed(where: str, item: Item) -> list[Any]:
    """Return the image sources a record names beside its conversation."""
    named = item.get("image") or item.get("images") or []
    named = named if isinstance(named, list) else [named]
    if not all((isinstance(n, str) and n) or isinstance(n, dict) for n in named):
        raise DataError(f"{where}: image is {item.get('image')!r}; write a path or a list of paths")
    return named


def _llava(where: str, item: Item) -> _Found:
    """LLaVA and ShareGPT4V: ``image`` and ``conversations`` of ``from`` and ``value``."""
    turns = item["conversations"]
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
        made.append(Message(_ROLES[role], text))
    return _listed(where, item), made


def _part(where: str, number: int, part: Any) -> tuple[str, Any]:
    """Return (text, None) or (mark, image source or None) of one part of a message."""
    fields = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
    kind = fields.get("type", "text" if isinstance(part, str) else None)
    if kind == "text":
        text = fields.get("text", part)
        if isinstance(text, str) and IMAGE in text:
            raise DataError(f"{where}: turn {number} has {IMAGE} in a text; write an image part")
        if isinstance(text, str):
            return text, None
    if kind in ("image", "image_url"):
        source = next((fields[k] for k in ("image", "path", "url", "image_url") if k in fields), "")
        return IMAGE, source.get("url", source) if isinstance(source, dict) else source
    raise DataError(
        f"{where}: turn {number} has the part {part!r}; write {{'type': 'text', 'text': ...}} or"
        " {'type': 'image', 'image': path}"
    )


def _messages(where: str, item: Item) -> _Found:
    """Hugging Face and OpenAI: ``messages`` whose ``content`` is a text or a list of parts."""
    turns = item["messages"]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: no messages; write a list of {{'role', 'content'}} turns")
    waiting, images, made = list(_listed(where, item)), list[Any](), list[Message]()
    for number, turn in enumerate(turns):
        fields = turn if isinstance(turn, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str) or role not in _ROLES or not isinstance(content, str | list):
            raise DataError(
                f"{where}: turn {number} is {turn!r}; write {{'role': 'user' or 'assistant' or"
                " 'system', 'content': text or list of parts}"
            )
        if isinstance(content, str):
            sources: list[Any] = [""] * content.count(IMAGE)
            text = content
        else:
            parts = [_part(where, number, part) for part in content]
            sources = [source for _, source in parts if source is not None]
            text = "\n".join(text for text, _ in parts)
        images += [s or (waiting.pop(0) if waiting else None) for s in sources]
        made.append(Message(_ROLES[role], text))
    if None in images:
        raise DataError(
            f"{where}: {len(images)} image marks but {images.index(None)} images; add the images to"
            " the parts or to the key images"
        )
    return images + waiting, made


def _question(where: str, item: Item) -> _Found:
    """VQA: ``image``, ``question`` and ``answers`` (texts, or objects with ``answer``)."""
    images, question = _listed(where, item), item["question"]
    told = item.get("answers") or item.get("answer") or []
    told = told if isinstance(told, list) else [told]
    answers: list[Any] = [a.get("answer") if isinstance(a, dict) else a for a in told]
    if not isinstance(question, str) or not all(isinstance(a, str) for a in answers):
        raise DataError(f"{where}: question and answers must be texts; got {question!r}, {told!r}")
    if IMAGE not in question:
        question = "\n".join([*[IMAGE] * len(images), question])
    best = Counter(answers).most_common(1)
    return images, [Message("user", question), Message("assistant", best[0][0] if best else "")]


_SHAPES: dict[str, Callable[[str, Item], _Found]] = {
    "conversations": _llava,
    "messages": _messages,
    "question": _question,
}
"""Key that tells a shape -> how it is read."""


def _check_turns(where: str, turns: list[Message]) -> None:
    for number, (role, text) in enumerate(turns):
        if IMAGE in text and role == "assistant":
            raise DataError(
                f"{where}: turn {number} has {IMAGE} in an answer; move it to a question"
            )
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise DataError(f"{where}: turn {number} has half a character (a lone surrogate)")
        if role == "assistant" and not text.strip():
            raise DataError(f"{where}: turn {number} is an empty answer; write it or leave it out")
    if not any(m.role == "assistant" for m in turns):
        raise DataError(f"{where}: no answer; add a turn {{'from': 'gpt', 'value': text}}")
    if turns[-1].role != "assistant" and IMAGE in turns[-1].text:
        raise DataError(f"{where}: the last question has an image but no answer; add the answer")


def to_sample(where: str, item: Any, folder: Path) -> CalibSample:
    """Check one record and return it as a conversation; images are not opened.

    Args:
        where: file and line or item, for messages.
        item: the record, of any shape that `read_items` lists.
        folder: folder that image paths start from.

    Raises:
        DataError: naming `where` and what to write.
    """
    if not isinstance(item, dict):
        raise DataError(f"{where}: a {type(item).__name__}; write an object with conversations")
    shape = next((key for key in _SHAPES if item.get(key) is not None), None)
    if shape is None:
        raise DataError(
            f"{where}: no conversations, messages or question; write 'conversations': a list of"
            " {'from', 'value'} turns"
        )
    sources, turns = _SHAPES[shape](where, item)
    _check_turns(where, turns)
    marks = sum(m.text.count(IMAGE) for m in turns)
    if marks != len(sources):
        raise DataError(
            f"{where}: {len(sources)} images but {marks} {IMAGE} marks in the conversations; write"
            " one mark per image where it belongs"
        )
    images = tuple(_image(where, source, folder) for source in sources)
    raw = {k: v for k, v in item.items() if k not in ("image", "images", "messages")}
    raw["image"] = [_shown(s, p) for s, p in zip(sources, images, strict=True)]
    name = item.get("id", item.get("question_id", where))
    return CalibSample(images, tuple(turns), str(name), raw, where)


def read_items(
    path: str | os.PathLike[str],
    image_folder: str | os.PathLike[str] = "",
    *,
    bad: list[DataError] | None = None,
) -> list[CalibSample]:
    """Read and check a file of conversations; images are not opened (see `check_images`).

    Every record is of one of these shapes, with any number of images:

    * LLaVA, ShareGPT4V: ``{"image": path or list, "conversations": [{"from": "human" or "gpt" or
      "system", "value": text}, ...]}``, a mark ``<image>`` where each image belongs;
    * Hugging Face: ``{"messages": [{"role", "content"}, ...]}``, content a text or a list of
      ``{"type": "text", "text"}`` and ``{"type": "image", "image"}`` parts; parts without a source
      take theirs from the key ``images``;
    * VQA: ``{"image", "question", "answers"}``.

    Pictures inside the file (parquet, base64) are unpacked to `image_cache`.

    Args:
        path: ``.json``, ``.jsonl`` or ``.parquet``.
        image_folder: folder that image paths start from; empty = the folder of `path`.
        bad: collects what is wrong with records that cannot be used; None = raise the first.

    Raises:
        DataError: naming the file and the line, item or row.
    """
    records = read_records(path)
    folder = Path(image_folder).expanduser() if str(image_folder) else find_file(path).parent
    if placeholder(str(image_folder)):
        raise DataError(
            f"image_folder is {str(image_folder)!r}, which stands for your own; give --image_folder"
        )
    if not folder.is_dir():
        raise DataError(f"image_folder {str(image_folder)!r} is not a folder; check the path")
    made = []
    for where, item in records:
        try:
            made.append(to_sample(where, item, folder))
        except DataError as error:
            if bad is None:
                raise
            bad.append(error)
    return made
