"""The inverse normal distribution as a table, which C kernels and torch read alike."""

from __future__ import annotations

import functools
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["OCTAVES", "PIECES", "inverse_normal"]

OCTAVES = 31
PIECES = 16
"""Pieces of an octave of the probability."""


@functools.cache
def inverse_normal() -> NDArray[np.float32]:
    """Return float32 [3, 496]: value, slope and curvature of ``y(p)`` at the start of each piece.

    Piece ``16 k + j`` begins at ``p = 2^(k - 32) (1 + j / 16)``; y is the number that a normal one
    exceeds with probability p. A parabola through both ends and the middle of a piece is within
    2e-6 of it.

    Example:
        >>> round(float(inverse_normal()[0, 0]), 2)  # exceeded with probability 2^-32
        6.23
    """
    normal = NormalDist()
    starts = [
        (2.0 ** (k - 32) * (1 + j / PIECES), 2.0 ** (k - 32) / PIECES)
        for k in range(OCTAVES)
        for j in range(PIECES)
    ]
    ends = np.array(
        [[-normal.inv_cdf(p + width * at) for at in (0, 0.5, 1)] for p, width in starts]
    )
    left, middle, right = ends.T
    curve = 2 * (left + right) - 4 * middle
    return np.stack([left, right - left - curve, curve]).astype(np.float32)
