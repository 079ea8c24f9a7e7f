"""Pictures of the web demo: what a tower sees, enlarged, with its patches, a mark or an overlay."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmibq.eval.attention import View

__all__ = ["EDGE", "overlaid", "with_patches"]

Picture = NDArray[np.uint8]
EDGE = 432
"""Pixels of the longer side, about."""
_LINE = np.array((255, 255, 255), np.float32)
_FRAME = (np.array((31, 36, 48), np.float32), np.array((240, 228, 66), np.float32))
_TINT = np.array((214, 48, 0), np.float32)


def _enlarged(view: View) -> NDArray[np.float32]:
    """Return the picture of a view, enlarged by a whole number; pixels stay squares."""
    times = max(1, round(EDGE / max(view.picture.shape[:2])))
    return np.repeat(np.repeat(view.picture, times, 0), times, 1).astype(np.float32)


def _edges(length: int, count: int) -> list[int]:
    return [round(i * length / count) for i in range(count + 1)]


def _cells(view: View, picture: NDArray[np.float32]) -> tuple[list[int], list[int]]:
    return _edges(picture.shape[0], view.grid[0]), _edges(picture.shape[1], view.grid[1])


def _grid(picture: NDArray[np.float32], ys: list[int], xs: list[int]) -> None:
    """Draw thin lines between patches."""
    for y in ys[1:-1]:
        picture[y] = 0.6 * picture[y] + 0.4 * _LINE
    for x in xs[1:-1]:
        picture[:, x] = 0.6 * picture[:, x] + 0.4 * _LINE


def _frame(picture: NDArray[np.float32], top: int, bottom: int, left: int, right: int) -> None:
    """Draw a frame of two colours along the inside of a rectangle."""
    for colour, inset, width in zip(_FRAME, (0, 2), (8, 4), strict=True):
        part = picture[top + inset : bottom - inset, left + inset : right - inset]
        for edge in (part[:width], part[-width:], part[:, :width], part[:, -width:]):
            edge[:] = colour


def _done(picture: NDArray[Any]) -> Picture:
    made: Picture = np.round(np.clip(picture, 0, 255)).astype(np.uint8)
    return made


def with_patches(view: View, patch: int | None = None) -> Picture:
    """Return what a tower sees with the borders of its patches, one of them framed.

    Args:
        view: what it sees.
        patch: number of the patch, row by row from 0; None = none.

    Example:
        >>> view = View(np.zeros((2, 2, 3), np.uint8), (2, 2), 0)
        >>> with_patches(view, 3).shape
        (432, 432, 3)
    """
    picture = _enlarged(view)
    ys, xs = _cells(view, picture)
    _grid(picture, ys, xs)
    if patch is not None:
        row, column = divmod(patch, view.grid[1])
        _frame(picture, ys[row], ys[row + 1], xs[column], xs[column + 1])
    return _done(picture)


def overlaid(view: View, weights: NDArray[np.floating[Any]]) -> Picture:
    """Return what a tower sees in grey, redder where it is looked at; the most is full red.

    Args:
        view: what it sees.
        weights: [rows, columns], attention of its patches.
    """
    picture = _enlarged(view)
    picture[:] = 76.5 + 0.7 * picture.mean(2, keepdims=True)
    ys, xs = _cells(view, picture)
    shares = 0.85 * weights / max(float(weights.max()), 1e-12)
    for (row, column), share in np.ndenumerate(shares):
        part = picture[ys[row] : ys[row + 1], xs[column] : xs[column + 1]]
        part[:] = (1 - share) * part + share * _TINT
    _grid(picture, ys, xs)
    return _done(picture)
