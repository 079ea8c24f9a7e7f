"""What a case is, and operands that several ops use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray]


@dataclass(frozen=True)
class Case:
    make: Callable[[np.random.Generator, int, int], Arrays]
    run: Callable[[object, Arrays], Arrays]
    oracle: Callable[[Arrays], Arrays] | None = None
    rtol: float = 0.0
    """Allowed relative error against the oracle; 0 = equal."""


def nasty(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.float32]:
    """Normal values sprinkled with ties, zeros of both signs, infinities, NaN and denormals."""
    x = rng.normal(0, 2, (rows, cols)).astype(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 0.25, -0.75, 1e38], np.float32)
    spots = rng.random((rows, cols)) < 0.15
    x[spots] = rng.choice(special, int(spots.sum()))
    return x


def some_nasty(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.float32]:
    """As `nasty`, but NaN and infinities in at most every third row, and one row of zeros."""
    x = nasty(rng, rows, cols)
    x[np.arange(rows) % 3 > 0] = np.nan_to_num(x[np.arange(rows) % 3 > 0], posinf=3, neginf=-3)
    x[1:2] = -0.0
    return x


def finite(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.float32]:
    """As `nasty` without NaN and infinities; single-signed, constant and zero rows among them."""
    x = np.nan_to_num(nasty(rng, rows, cols), posinf=3, neginf=-3)
    x[x > 1e37] = 1.5
    x[1:2], x[2:3], x[3:4] = -0.0, np.abs(x[2:3]) + 1, 0.3
    return x
