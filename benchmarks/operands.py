"""Operands that several axes share, and rings of distinct operands that no cache holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

__all__ = ["RING_BYTES", "matrix", "ring", "ring_length"]

RING_BYTES = 256 << 20
"""Distinct bytes that a weight-streaming case cycles through, so that DRAM answers, not a cache."""


@lru_cache(maxsize=2)
def matrix(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Return a float32 matrix of normal values, the same array for the same arguments."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, cols), dtype=np.float32)


def ring_length(size: int) -> int:
    """Return how many operands of `size` bytes fill a ring."""
    return max(1, -(-RING_BYTES // size))


def ring(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return a call that does the next of `calls` each time, round and round."""
    step = itertools.cycle(calls).__next__
    return lambda: step()()
