"""Random shapes, values and views for the fuzz: edges first, then anything."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Rng", "hostile", "matrix", "positive", "size", "spread"]

Rng = np.random.Generator
EDGES = [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 128, 130, 257]
SPECIAL = np.array([0, -0.0, 1e-45, -1e-42, 1e-38, 3e38, -3e38, 0.5, 1.5, -2.5], np.float32)


def size(rng: Rng, least: int = 0, most: int = 257) -> int:
    """Return a size that is often beside the width of a vector."""
    return int(rng.choice([n for n in EDGES if least <= n <= most]))


def matrix(rng: Rng, *shape: int, special: bool = False) -> np.ndarray:
    """Return float32 of one magnitude, of heavy tails or of special values (never NaN)."""
    gain = 10.0 ** rng.integers(-3, 4)
    x = (rng.standard_t(2, shape) if rng.random() < 0.3 else rng.normal(size=shape)) * gain
    x = x.astype(np.float32)
    if special and x.size and rng.random() < 0.5:
        some = rng.random(shape) < 0.2
        x[some] = rng.choice(SPECIAL, int(some.sum()))
    return x


def spread(rng: Rng, x: np.ndarray) -> np.ndarray:
    """Put NaN or infinity at one place, sometimes."""
    if x.size and rng.random() < 0.3:
        x = x.copy()
        x.flat[rng.integers(x.size)] = rng.choice([np.nan, np.inf, -np.inf])
    return x


def positive(rng: Rng, *shape: int) -> np.ndarray:
    """Return step sizes."""
    return (rng.uniform(0.01, 2, shape) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)


def _misaligned(x: np.ndarray) -> np.ndarray:
    room = np.empty(x.nbytes + 1, np.uint8)
    view = np.frombuffer(room.data, x.dtype, x.size, 1).reshape(x.shape)
    view[...] = x
    return view


def _read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def _strided(x: np.ndarray) -> np.ndarray:
    wide = np.repeat(x, 2, -1) if x.ndim else x
    return wide[..., ::2]


class _Labelled(np.ndarray):
    """A subclass that only has another name."""


SAME = [  # other forms of the same values: refused or right
    _misaligned,
    _read_only,
    _strided,
    lambda x: np.asfortranarray(x),
    lambda x: x[..., ::-1].copy()[..., ::-1],
    lambda x: x.view(_Labelled),
    lambda x: x.astype(x.dtype.newbyteorder()),
]
OTHER: list[Any] = [  # other values: refused or whatever, but the process stays
    lambda x: x.astype(np.float64),
    lambda x: x.astype(np.float16),
    lambda x: x.astype(bool),
    lambda x: x.astype(object),
    lambda x: x[..., None],
    lambda x: x.ravel(),
    lambda x: x[:-1],
    lambda x: x[:0],
    lambda x: x[..., :-1],
    lambda x: np.array(1.0, x.dtype),
    lambda x: x.tolist(),
    lambda x: np.zeros(x.shape[::-1], x.dtype),
    lambda x: np.broadcast_to(x[:1], x.shape),
    lambda x: np.zeros(x.shape, [("a", x.dtype)]),
    lambda x: np.full(x.shape, -1).astype(x.dtype),
    lambda x: np.full(x.shape, np.nan, np.float32),
    lambda x: None,
    lambda x: "x",
    lambda x: 3,
    lambda x: -1,
    lambda x: 2**70,
    lambda x: float("nan"),
]


def hostile(rng: Rng, given: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Change one argument; tell whether the values are the same."""
    arrays = [k for k, v in given.items() if isinstance(v, np.ndarray) and k != "out"]
    name = rng.choice(arrays if rng.random() < 0.8 else list(given))
    old = given[name]
    if not isinstance(old, np.ndarray):
        new = [None, "x", -1, 0, 1, 2**40, 2**70, 1.5, float("nan"), [], True, np.int8(3)]
        return given | {name: new[rng.integers(len(new))]}, False
    same = bool(rng.random() < 0.5)
    change = (SAME if same else OTHER)[rng.integers(len(SAME if same else OTHER))]
    try:
        return given | {name: change(old)}, same
    except (ValueError, TypeError, IndexError):  # no such form of this array
        return given, True
