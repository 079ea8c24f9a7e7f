"""What calibration data is made of: conversations, images, and how a kind of data is read."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cmibq.errors import DataError
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
    "to_rgb",
]

IMAGE = "<image>"


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
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    where: str = ""


@dataclass(frozen=True)
class Calibration:
    """A kind of calibration data.

    Args:
        read: choose samples and check them and their files; needs no model.
        encode: turn samples into tokens, given the model's processor.
    """

    read: Callable[[QuantRecipe], Sequence[CalibSample]]
    encode: Callable[[Sequence[CalibSample], Any, QuantRecipe], list[Encoded]]


CALIBRATIONS: Registry[Calibration] = Registry("calibration data")
"""Value of ``calib_data`` -> how it is read."""


@contextlib.contextmanager
def open_image(path: Path, where: str = "") -> Iterator[Image]:
    """Open an image; whatever goes wrong until it is closed again is told with its name.

    Args:
        path: the file.
        where: the item that names it, for messages.

    Raises:
        DataError: the file is missing, truncated, too large or no image, or its pixels are numbers
            without a range.
    """
    from PIL import Image

    place = f"{where}: " if where else ""
    if not path.is_file():
        raise DataError(f"{place}image {str(path)!r} does not exist; check image_folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.mode in ("I", "F"):
                    raise DataError(
                        f"{place}image {str(path)!r} has 32 bits per pixel (mode {image.mode}), and"
                        " nothing tells which value is white; save it with 8 or 16 bits per channel"
                    )
                yield image
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{place}image {str(path)!r} cannot be read ({error}); replace it"
        ) from error


def to_rgb(image: Image) -> Image:
    """Return an image with 8 bits for red, green and blue; grey of 16 bits keeps the upper 8."""
    from PIL import Image as images

    if image.mode.startswith("I;16"):  # Pillow would make white of all above 255
        return images.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


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
