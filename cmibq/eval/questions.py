"""Questions ready to be asked: tokens and pixels, made once for all models of a process."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmibq.data import (
    CalibSample,
    Encoded,
    Picture,
    Pixels,
    check_images,
    encode,
    load_images,
    read_items,
)
from cmibq.errors import DataError
from cmibq.fileio import sha256_bytes, sha256_file
from cmibq.models import load_processor

__all__ = ["Questions", "data_hash", "images_hash", "load_items", "load_questions"]

_PIXEL_BUDGET = 256 << 20
_PROCESSOR_FILES = ("*processor_config.json", "*tokenizer*", "chat_template*", "*vocab*", "*.txt")


class Questions:
    """Encoded questions with the pixels of their images; pixels are kept up to 256 MiB.

    Args:
        samples: encoded questions, in the order of the file.
        processor: what encoded them.
    """

    def __init__(self, samples: Sequence[Encoded], processor: Any) -> None:
        self.samples = samples
        self.images = tuple(dict.fromkeys(p for s in samples for p in s.pictures))
        self._processor = processor
        self._kept: dict[Picture, Pixels] = {}
        self._room = _PIXEL_BUDGET

    def pixels(self, pictures: Sequence[Picture]) -> list[Pixels]:
        """Return what the model takes for some images.

        Raises:
            DataError: an image cannot be decoded.
        """
        new = [p for p in pictures if p not in self._kept]
        made = dict(zip(new, load_images(new, self._processor), strict=True)) if new else {}
        for picture, pixels in made.items():
            size = sum(v.numel() * v.element_size() for v in pixels.values())
            if size <= self._room:
                self._kept[picture] = {name: value.clone() for name, value in pixels.items()}
                self._room -= size
        return [self._kept[p] if p in self._kept else made[p] for p in pictures]


def data_hash(path: str | Path) -> str:
    """Return the SHA-256 of a data file.

    Raises:
        DataError: it cannot be read.
    """
    if not str(path):
        raise DataError("data_path is empty; name a file of questions, or tasks of lmms-eval")
    try:
        return sha256_file(Path(path).expanduser())
    except OSError as error:
        raise DataError(f"data_path {str(path)!r} cannot be read ({error.strerror})") from error


def _processor_hash(folder: Path) -> str:
    files = sorted({p for pattern in _PROCESSOR_FILES for p in folder.glob(pattern)})
    parts = [f"{p.name} {sha256_file(p)}" for p in files if p.is_file()]
    return sha256_bytes("\n".join(parts).encode())


def images_hash(samples: Sequence[CalibSample]) -> str:
    """Return a hash of the names, sizes and times of all images of some items.

    Raises:
        DataError: an image is gone.
    """
    digest = hashlib.sha256()
    for path in dict.fromkeys(p for s in samples for p in s.images):
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"image {str(path)!r} cannot be read ({error.strerror})") from error
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=2)
def _items(data: str, content: str, images: str, limit: int | None) -> list[CalibSample]:
    samples = read_items(data, images)[:limit]
    for sample in samples:
        if not any(m.role == "assistant" for m in sample.messages):
            raise DataError(f"{sample.where}: no answer to compare with; add one or leave it out")
        scans = sample.raw.get("scans") or []
        if not isinstance(scans, list) or not all(isinstance(s, str | int) for s in scans):
            raise DataError(f"{sample.where}: scans is {scans!r}; write a list of names or numbers")
    check_images(samples)
    return samples


def load_items(data: str, image_folder: str = "", limit: int | None = None) -> list[CalibSample]:
    """Read and check the questions of a file; read once per process while it is the same.

    Args:
        data: LLaVA-format ``.json`` or ``.jsonl``.
        image_folder: folder that image paths start from; empty = that of the file.
        limit: the first so many; None = all.

    Raises:
        DataError: naming the file and the line, item or image.
    """
    return _items(data, data_hash(data), image_folder, limit)


@dataclass(frozen=True)
class _Tool:
    """A processor, known by the content of its files wherever they lie."""

    content: str
    folder: str = field(compare=False)


@functools.lru_cache(maxsize=2)
def _questions(data: str, content: str, images: str, limit: int | None, tool: _Tool) -> Questions:
    processor = load_processor(tool.folder)
    return Questions(encode(_items(data, content, images, limit), processor), processor)


def load_questions(
    folder: str | Path, data: str, image_folder: str = "", limit: int | None = None
) -> Questions:
    """Read, check and encode questions as the processor of a model folder does.

    Models with the same processor files share what was read, as long as the process lives.

    Args:
        folder: model folder or package.
        data: LLaVA-format ``.json`` or ``.jsonl``.
        image_folder: folder that image paths start from; empty = that of the file.
        limit: the first so many; None = all.

    Raises:
        DataError: naming the file and the line, item or image.
        ModelError: the processor cannot be loaded.
    """
    tool = _Tool(_processor_hash(Path(folder)), str(folder))
    return _questions(data, data_hash(data), image_folder, limit, tool)
