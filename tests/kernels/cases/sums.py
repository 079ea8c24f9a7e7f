"""The sums of packed linear layers as documented, in NumPy: the oracle of qgemm and qlinear.

Products of at most 53 bits and sums of integers are exact in float64 or int64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tests.oracles.fma import fma


def groups_of(cols: int) -> int:
    """Return the largest number of equal groups that are multiples of 8; 1 where there is none."""
    return max((g for g in (2, 3, 5) if cols and cols % (8 * g) == 0), default=1)


def blocks(cols: int, groups: int, most: int) -> Iterator[tuple[int, slice]]:
    """Yield (group, inputs) of every block of at most `most` inputs."""
    size = cols // groups
    for g in range(groups):
        for k in range(g * size, (g + 1) * size, most):
            yield g, slice(k, min(k + most, (g + 1) * size))


def f32_sums(x: NDArray, level: NDArray, scale: NDArray) -> NDArray[np.float32]:
    acc = np.zeros((len(x), len(level)), np.float32)
    for g, k in blocks(x.shape[1], scale.shape[1], 256):
        most = np.abs(x[:, k]).max(1, initial=0)
        finite = np.isfinite(most)
        e = np.maximum(np.frexp(np.where(finite, most, 1))[1] - 1, -90)
        e = np.where(most == 0, -90, e)
        given = np.where(finite[:, None], x[:, k], 0).astype(np.float64)
        q = np.rint(np.ldexp(given, 29 - e[:, None])).astype(np.int64)
        low = (q + 0x8080) % 65536 - 0x8080
        high = (q - low) // 65536
        parts = [(d @ level[:, k].T).astype(np.float32) for d in (high, low)]
        f = fma(parts[0], np.float32(65536), parts[1])
        step = np.where(finite, np.ldexp(1.0, e - 29), np.nan).astype(np.float32)
        acc = fma(scale[:, g] * step[:, None], f, acc)
    return acc


def s8_sums(x: NDArray, level: NDArray, scale: NDArray) -> NDArray[np.float32]:
    acc = np.zeros((len(x), len(level)), np.float32)
    for g, k in blocks(x.shape[1], scale.shape[1], 1 << 30):
        dot = (x[:, k].astype(np.int64) @ level[:, k].T).astype(np.float32)
        acc = fma(np.broadcast_to(scale[:, g], dot.shape), dot, acc)
    return acc
