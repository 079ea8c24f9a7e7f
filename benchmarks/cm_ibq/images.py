"""The picture itself, compressed: what a sender without the model's eyes would do."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

__all__ = ["compressed"]

Pixels = np.ndarray[Any, Any]


def compressed(pixels: Pixels, how: str, quality: int) -> tuple[Pixels, int, int]:
    """Return a picture after compression, the bytes of its file, and those without headers.

    Args:
        pixels: uint8 [H, W, 3].
        how: ``"jpeg"`` (4:4:4, optimised tables) or ``"webp"`` (slowest, best method).
        quality: of Pillow, 0..100.

    Returns:
        The pixels, the size of the file, and the size of the part that holds the picture alone: the
        scan of a JPEG, without its tables; the VP8 frame of a WebP, without the container. A sender
        who agreed on the rest beforehand would send that.

    Example:
        >>> made, whole, bare = compressed(np.zeros((20, 20, 3), np.uint8), "jpeg", 50)
        >>> made.shape, bare < whole
        ((20, 20, 3), True)
    """
    from PIL import Image

    if how == "jpeg":
        options: dict[str, Any] = {"format": "JPEG", "subsampling": 0, "optimize": True}
    else:
        options = {"format": "WEBP", "method": 6}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, quality=quality, **options)
    content = buffer.getvalue()
    with Image.open(io.BytesIO(content)) as image:
        made = np.asarray(image.convert("RGB"))
    return made, len(content), len(content) - _header(content, how)


def _header(content: bytes, how: str) -> int:
    """Return the bytes before and behind the picture's own data."""
    if how == "webp":
        return 20  # RIFF, size, WEBP, VP8, size
    at = content.index(b"\xff\xda")
    return at + 2 + int.from_bytes(content[at + 2 : at + 4], "big") + 2
