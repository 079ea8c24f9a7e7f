"""Compose quadrant digits: pictures of tinted handwritten digits and questions about them.

A picture is a 20 x 20 canvas of four 10 x 10 quadrants. Two or three of them hold one of
scikit-learn's 1,797 real handwritten digits (8 x 8 scans), shifted by up to one pixel, dimmed
at random and tinted in a colour of its own. Every question has one checkable answer. The scans
are split before anything is composed, so no scan of one split is ever seen in another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cmibq.errors import ConfigError

__all__ = [
    "CANVAS",
    "CELL",
    "COLOURS",
    "KINDS",
    "NUMBERS",
    "PLACES",
    "SPLITS",
    "Picture",
    "Pool",
    "Question",
    "compose",
    "load_pool",
]

CELL: Final = 10
CANVAS: Final = 2 * CELL
COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.15, 1.0, 0.25),
    "blue": (0.25, 0.35, 1.0),
    "yellow": (1.0, 0.9, 0.1),
}
PLACES: Final = ("top left", "top right", "bottom left", "bottom right")
NUMBERS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
)
KINDS: Final = (*("digit_of_colour", "digit_at_place", "colour", "even", "sum", "larger", "where"),)
# Scans per split; the rest of the 1,797 go to training. Calibration data is what a method may look
# at, dev is for everything one looks at while building, test is opened by the final run only.
SPLITS: Final = {"test": 400, "dev": 200, "calib": 100}
_SPLIT_SEED: Final = (0, 17)


@dataclass(frozen=True)
class Pool:
    """The scans that one split may use.

    Attributes:
        scans: Pixels, float32 ``(N, 8, 8)`` in 0..1.
        digits: What each scan shows, int ``(N,)``.
        ids: Row of each scan in scikit-learn's data set, int ``(N,)``.
    """

    scans: npt.NDArray[np.float32]
    digits: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Question:
    """One question about a picture: its kind, its words and the only right answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Picture:
    """One composed picture and the questions about it.

    Attributes:
        pixels: uint8 ``(20, 20, 3)``.
        digits: Digit per quadrant in the order of `PLACES`, -1 where there is none.
        colours: Index into `COLOURS` per quadrant, -1 where there is none.
        scans: Ids of the scans shown.
        questions: What is asked.
    """

    pixels: npt.NDArray[np.uint8]
    digits: tuple[int, ...]
    colours: tuple[int, ...]
    scans: tuple[int, ...]
    questions: tuple[Question, ...]


@functools.cache
def _load_scans() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64)


def load_pool(split: str) -> Pool:
    """Load the scans of one split; which scan is in which split never changes.

    Args:
        split: ``"train"``, ``"calib"``, ``"dev"`` or ``"test"``.

    Returns:
        The scans, every digit in equal shares up to one scan.

    Raises:
        ConfigError: If there is no such split.
    """
    if split != "train" and split not in SPLITS:
        raise ConfigError(f"split={split!r} is not one of 'train', {', '.join(map(repr, SPLITS))}")
    scans, digits = _load_scans()
    rng = np.random.default_rng(_SPLIT_SEED)
    # Interleave the digits (all ranked first, then all ranked second, ...): any slice is balanced.
    shuffled = rng.permutation(len(digits))
    ranks = np.empty(len(digits), np.int64)
    for digit in range(10):
        rows = shuffled[digits[shuffled] == digit]
        ranks[rows] = np.arange(len(rows))
    order = shuffled[np.argsort(ranks[shuffled], kind="stable")]
    start = 0
    for name, size in SPLITS.items():
        if name == split:
            ids = np.sort(order[start : start + size])
            break
        start += size
    else:
        ids = np.sort(order[start:])
    return Pool(scans[ids], digits[ids], ids)


def _place_scan(
    scan: npt.NDArray[np.float32], rng: np.random.Generator, augment: bool
) -> npt.NDArray[np.float32]:
    """Put an 8 x 8 scan into a cell: shifted and dimmed, in training also warped and noisy."""
    shift = rng.integers(1, CELL - 7, size=2)
    if not augment:
        cell = np.zeros((CELL, CELL), np.float32)
        cell[shift[0] : shift[0] + 8, shift[1] : shift[1] + 8] = scan
    else:
        angle, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
        zoom = rng.uniform(0.9, 1.12, size=2)
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, -sin], [sin + shear, cos]]) / zoom[:, None]
        cell = _warp(scan, matrix, shift + 3.5 + rng.uniform(-0.3, 0.3, size=2))
        noise = rng.normal(0.0, 0.15, cell.shape).astype(np.float32)
        cell = np.clip(cell + noise * (cell > 0), 0.0, 1.0)
    return cell * np.float32(rng.uniform(0.65, 1.0))


def _warp(
    scan: npt.NDArray[np.float32], matrix: npt.NDArray[np.float64], centre: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Sample a scan bilinearly at ``matrix @ (cell - centre) + 3.5``, zero outside."""
    padded = np.zeros((12, 12), np.float32)
    padded[2:10, 2:10] = scan
    axes = np.arange(CELL, dtype=np.float64)
    grid = np.stack(np.meshgrid(axes, axes, indexing="ij")).reshape(2, -1)
    at = np.clip(matrix @ (grid - centre[:, None]) + 5.5, 0.0, 10.999)
    low = at.astype(np.int64)
    y, x = (at - low).astype(np.float32)
    row, column = low
    top = padded[row, column] * (1 - x) + padded[row, column + 1] * x
    bottom = padded[row + 1, column] * (1 - x) + padded[row + 1, column + 1] * x
    cell: npt.NDArray[np.float32] = (top * (1 - y) + bottom * y).reshape(CELL, CELL)
    return cell.astype(np.float32)


def _ask(
    kind: str, digits: Sequence[int], colours: Sequence[int], rng: np.random.Generator
) -> Question:
    """Ask one question about a scene whose digits and colours all differ."""
    names = tuple(COLOURS)
    shown = [place for place, digit in enumerate(digits) if digit >= 0]
    first, second = rng.permutation(shown)[:2].tolist()
    digit, hue, place = NUMBERS[digits[first]], names[colours[first]], PLACES[first]
    other = names[colours[second]]
    by_place = bool(rng.integers(2))
    if kind == "digit_of_colour":
        return Question(kind, f"which digit is {hue}?", digit)
    if kind == "digit_at_place":
        return Question(kind, f"what is at {place}?", digit)
    if kind == "colour":
        where = f"is at {place}" if by_place else f"is the {digit}"
        return Question(kind, f"which colour {where}?", hue)
    if kind == "even":
        answer = "no" if digits[first] % 2 else "yes"
        return Question(kind, f"is the {place if by_place else hue} digit even?", answer)
    if kind == "sum":
        pair = "the two digits" if len(shown) == 2 and by_place else f"{hue} and {other}"
        total = NUMBERS[digits[first] + digits[second]]
        return Question(kind, f"what is the sum of {pair}?", total)
    if kind == "larger":
        answer = hue if digits[first] > digits[second] else other
        return Question(kind, f"which is larger, {hue} or {other}?", answer)
    if kind == "where":
        return Question(kind, f"where is the {digit if by_place else hue}?", place)
    raise ConfigError(f"kind={kind!r} is not one of {', '.join(map(repr, KINDS))}")


def _draw_scene(
    pool: Pool, rng: np.random.Generator, most: int
) -> tuple[list[int], list[int], list[int]]:
    """Draw digits that all differ, their colours and the pool rows, one entry per quadrant."""
    count = int(rng.integers(2, most + 1))
    rows: list[int] = []
    while len(rows) < count:
        row = int(rng.integers(len(pool.digits)))
        if pool.digits[row] not in pool.digits[rows]:
            rows.append(row)
    digits, colours, where = [-1] * 4, [-1] * 4, [-1] * 4
    hues = rng.permutation(len(COLOURS))[:count].tolist()
    for place, row, hue in zip(rng.permutation(4)[:count].tolist(), rows, hues, strict=True):
        digits[place], colours[place], where[place] = int(pool.digits[row]), hue, row
    return digits, colours, where


def compose(
    pool: Pool,
    rng: np.random.Generator,
    *,
    kinds: Sequence[str] = KINDS,
    augment: bool = False,
    most: int = 3,
) -> Picture:
    """Compose one picture and ask questions about it.

    Args:
        pool: The scans to draw from.
        rng: Where every choice comes from.
        kinds: The kinds of question to ask, one question each.
        augment: Also warp the scans slightly and add noise; for training only.
        most: Largest number of digits; the smallest is two.

    Returns:
        The picture with ``len(kinds)`` questions.

    Raises:
        ConfigError: If a kind is not one of `KINDS`.
    """
    digits, colours, where = _draw_scene(pool, rng, most)
    canvas = np.zeros((CANVAS, CANVAS, 3), np.float32)
    tints = np.array(list(COLOURS.values()), np.float32)
    for place, row in enumerate(where):
        if row < 0:
            continue
        cell = _place_scan(pool.scans[row], rng, augment)
        top, left = CELL * (place // 2), CELL * (place % 2)
        canvas[top : top + CELL, left : left + CELL] = cell[..., None] * tints[colours[place]]
    questions = tuple(_ask(kind, digits, colours, rng) for kind in kinds)
    pixels = np.round(canvas * 255.0).astype(np.uint8)
    scans = tuple(int(pool.ids[row]) for row in where if row >= 0)
    return Picture(pixels, tuple(digits), tuple(colours), scans, questions)
