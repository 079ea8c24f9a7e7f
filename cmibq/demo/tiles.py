"""Compose tiles: pictures for which two vision towers are needed, and questions about them.

A picture is 32 x 32 pixels of four 16 x 16 tiles. Behind everything are crops of photographs that
ship with scikit-image (brick, grass, gravel, a printed page). A tile either shows one of
scikit-learn's real handwritten digits, or is empty and tinted in one of six hues. A hue stands for
a digit, as on the bands of a resistor (IEC 60062: red 2, orange 3, yellow 4, green 5, blue 6,
violet 7). Hues are equally bright: who sees no colour sees no difference.

A row is a digit and a hue, or (in every second picture, one of the rows) two digits. Scans and the
regions that crops come from are split before anything is composed. Twelve of the 60 pairs of a
digit and a hue are never shown in training (`is_new`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from cmibq.demo.scenes import NUMBERS, PLACES, Pool, Question
from cmibq.errors import ConfigError

__all__ = [
    "HUES",
    "KINDS",
    "SIZE",
    "TEXTURES",
    "TILE",
    "Tiles",
    "ask",
    "compose_tiles",
    "is_new",
    "render",
]

TILE: Final = 16
SIZE: Final = 2 * TILE
TEXTURES: Final = ("brick", "grass", "gravel", "page")
_SHRINK: Final = {"brick": 4, "grass": 4, "gravel": 2, "page": 2}
_PLAIN: Final = 0.06
HUES: Final[dict[str, tuple[int, tuple[float, float, float]]]] = {
    "red": (2, (1.0, 0.25, 0.25)),
    "orange": (3, (0.9, 0.52, 0.08)),
    "yellow": (4, (0.7, 0.7, 0.1)),
    "green": (5, (0.2, 1.0, 0.3)),
    "blue": (6, (0.25, 0.3, 0.95)),
    "violet": (7, (0.75, 0.1, 0.65)),
}
"""Name -> the digit that it stands for, and its tint; the channels of every tint sum to 1.5."""
KINDS: Final = ("digit", "sum", "colour", "where", "code", "new")
"""Digit at a place; sum of two digits; hue at a place; place of a hue; sum of a digit and a hue, of
a pair that training shows; of one that it never shows."""
_GREY: Final = (0.5, 0.5, 0.5)
_REGIONS: Final = {"train": (0.0, 0.5), "dev": (0.53, 0.72), "test": (0.75, 1.0)}
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tiles:
    """Pictures and what they show.

    Attributes:
        pixels: uint8 ``(N, 32, 32, 3)``.
        digits: int ``(N, 4)``, digit of every tile in the order of `PLACES`, -1 where none is.
        textures: int ``(N, 4)``, index into `TEXTURES`.
        hues: int ``(N, 4)``, index into `HUES`, -1 where a tile is grey.
        scans: int ``(N, 4)``, id of the scan shown, -1 where none is.
    """

    pixels: npt.NDArray[np.uint8]
    digits: Ints
    textures: Ints
    hues: Ints
    scans: Ints

    @property
    def values(self) -> Ints:
        """Number of every tile, its digit or the one that its hue stands for, ``(N, 4)``."""
        codes = np.array([code for code, _ in HUES.values()] + [0])
        return np.where(self.digits >= 0, self.digits, codes[self.hues])

    @property
    def sums(self) -> Ints:
        """Sum of the row of every tile, ``(N, 4)``."""
        return np.repeat(self.values.reshape(-1, 2, 2).sum(2), 2, axis=1)


def is_new(digit: Any, hue: Any) -> Any:
    """Tell of pairs (arrays of digits, of indices into `HUES`) whether training leaves them out.

    Example:
        >>> sum(bool(is_new(digit, hue)) for digit in range(10) for hue in range(6))
        12
    """
    return (np.asarray(digit) + 3 * np.asarray(hue)) % 5 == 0


@functools.cache
def _textures(split: str) -> tuple[npt.NDArray[np.float32], ...]:
    """Return all crops of every texture that a split may use, ``(crops, 16, 16)`` views.

    A texture is shrunk until a crop shows what it is, and brought to mean 0.5 and spread 0.13.
    Crops that are almost plain (paper between lines) are left out.
    """
    from skimage import data

    low, high = _REGIONS[split]
    found = []
    for name, by in _SHRINK.items():
        whole = getattr(data, name)().astype(np.float32)
        rows, columns = (edge // by for edge in whole.shape)
        small = whole[: by * rows, : by * columns].reshape(rows, by, columns, by).mean((1, 3))
        small = np.clip(0.5 + 0.13 * (small - small.mean()) / small.std(), 0.0, 1.0)
        region = small[:, int(low * columns) : int(high * columns)]
        crops = np.lib.stride_tricks.sliding_window_view(region, (TILE, TILE))
        found.append(crops[crops.std((2, 3)) >= _PLAIN])
    return tuple(found)


def _crops(textures: Ints, split: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a random crop per tile, ``(M, 16, 16)``."""
    out = np.empty((len(textures), TILE, TILE), np.float32)
    for number, crops in enumerate(_textures(split)):
        mine = np.flatnonzero(textures == number)
        out[mine] = crops[rng.integers(len(crops), size=len(mine))]
    return out


def _strokes(
    scans: npt.NDArray[np.float32], rng: np.random.Generator, augment: bool
) -> npt.NDArray[np.float32]:
    """Return scans ``(M, 8, 8)`` on tiles: enlarged and shifted, in training also turned."""
    count = len(scans)
    zoom, shift = rng.uniform(1.4, 1.75, count), rng.uniform(-1.0, 1.0, (count, 2))
    angle, shear = (rng.uniform(-0.2, 0.2, count) if augment else np.zeros(count) for _ in "ab")
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle) + shear, np.cos(angle)], 1)
    matrix = turn.reshape(count, 2, 2) * (TILE / 8 / zoom)[:, None, None]
    theta = np.concatenate([matrix, -(shift / 4)[:, :, None]], 2)
    grid = functional.affine_grid(
        torch.from_numpy(theta).float(), [count, 1, TILE, TILE], align_corners=False
    )
    made = functional.grid_sample(torch.from_numpy(scans)[:, None], grid, align_corners=False)
    found: npt.NDArray[np.float32] = made[:, 0].numpy()
    bright = rng.uniform(0.75, 1.0, (count, 1, 1)).astype(np.float32)
    strokes: npt.NDArray[np.float32] = np.clip(found * 1.2, 0.0, 1.0) * bright
    return strokes


def render(
    pool: Pool,
    rows: Ints,
    textures: Ints,
    hues: Ints,
    rng: np.random.Generator,
    *,
    split: str,
    augment: bool = False,
) -> npt.NDArray[np.uint8]:
    """Draw pictures.

    Args:
        pool: scans to draw.
        rows: ``(N, 4)``, row of the pool per tile, -1 for none.
        textures: ``(N, 4)``, index into `TEXTURES`.
        hues: ``(N, 4)``, index into `HUES`, -1 for grey.
        rng: where crops, sizes and shifts come from.
        split: whose regions crops come from: ``"train"``, ``"dev"`` or ``"test"``.
        augment: also turn and shear the scans; for training only.

    Returns:
        uint8 ``(N, 32, 32, 3)``.

    Raises:
        ConfigError: there is no such split.
    """
    if split not in _REGIONS:
        raise ConfigError(f"split is {split!r}; allowed are {', '.join(_REGIONS)}")
    flat = rows.reshape(-1)
    tints = np.array([tint for _, tint in HUES.values()] + [_GREY], np.float32)
    tiles = (
        _crops(textures.reshape(-1), split, rng)[..., None] * tints[hues.reshape(-1), None, None]
    )
    shown = np.flatnonzero(flat >= 0)
    stroke = _strokes(pool.scans[flat[shown]], rng, augment)[..., None]
    tiles[shown] = tiles[shown] * (1 - stroke) + stroke
    whole = tiles.reshape(-1, 2, 2, TILE, TILE, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.round(255 * whole.reshape(-1, SIZE, SIZE, 3)).astype(np.uint8)


def _pairs(count: int, new: bool, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return pairs of a digit and a hue; digits differ, hues differ."""
    every = [(d, h) for d in range(10) for h in range(len(HUES)) if bool(is_new(d, h)) == new]
    while True:
        some = [every[i] for i in rng.integers(len(every), size=count).tolist()]
        if all(len(set(column)) == count for column in zip(*some, strict=True)):
            return some


def compose_tiles(
    pool: Pool,
    count: int,
    rng: np.random.Generator,
    *,
    split: str,
    new: float = 0.0,
    augment: bool = False,
) -> Tiles:
    """Compose pictures, every second one with a row of two digits; all digits of one differ.

    Args:
        pool: scans of the split, see `cmibq.demo.scenes.load_pool`.
        count: N.
        rng: where every choice comes from.
        split: ``"train"``, ``"dev"`` or ``"test"``.
        new: share of pictures (the first ones) with pairs that training leaves out.
        augment: see `render`.
    """
    of_digit = [np.flatnonzero(pool.digits == digit) for digit in range(10)]
    hues, rows = np.full((count, 4), -1), np.full((count, 4), -1)
    textures = rng.permuted(np.tile(np.arange(4), (count, 1)), axis=1)
    for number in range(count):
        top = int(rng.integers(2))
        pairs = _pairs(1 + number % 2, number < round(new * count), rng)
        for row, (digit, hue) in zip((top, 1 - top), pairs, strict=False):
            left = int(rng.integers(2))
            rows[number, 2 * row + left] = rng.choice(of_digit[digit])
            hues[number, 2 * row + 1 - left] = hue
        if len(pairs) == 1:
            others = rng.permutation([d for d in range(10) if d != pairs[0][0]])[:2]
            drawn = [rng.choice(of_digit[d]) for d in others.tolist()]
            rows[number, 2 - 2 * top : 4 - 2 * top] = drawn
    pixels = render(pool, rows, textures, hues, rng, split=split, augment=augment)
    digits = np.where(rows >= 0, pool.digits[rows], -1)
    return Tiles(pixels, digits, textures, hues, np.where(rows >= 0, pool.ids[rows], -1))


def ask(tiles: Tiles, number: int, rng: np.random.Generator) -> list[Question]:
    """Ask four questions about a picture.

    About one with a row of two digits: "digit", "colour", "sum" and "code" or "new"; about another:
    "digit", "where" and twice "code" or "new", see `KINDS`.

    Args:
        tiles: the pictures.
        number: of the picture.
        rng: where the places asked about come from.
    """
    digits, hues = tiles.digits[number], tiles.hues[number]
    hued, names = np.flatnonzero(hues >= 0), tuple(HUES)
    place, band = int(rng.choice(np.flatnonzero(digits >= 0))), int(rng.choice(hued))

    def total(kind: str, at: int) -> Question:
        by_hue = len(hued) == 2 and bool(rng.integers(2))
        told = f"with {names[hues[at]]}" if by_hue else f"of the {('top', 'bottom')[at // 2]}"
        return Question(kind, f"what is the sum {told}?", NUMBERS[tiles.sums[number, at]])

    asked = [Question("digit", f"which digit is at {PLACES[place]}?", NUMBERS[digits[place]])]
    if len(hued) == 2:
        asked.append(Question("where", f"where is {names[hues[band]]}?", PLACES[band]))
    else:
        told = f"which colour is at {PLACES[band]}?"
        asked.append(Question("colour", told, names[hues[band]]))
        asked.append(total("sum", int(band < 2) * 2))
    for at in hued.tolist():
        asked.append(total("new" if is_new(digits[at ^ 1], hues[at]) else "code", at))
    return asked
