"""Which elements of a tensor share one grid: every granularity is a view as a matrix of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cmibq.errors import ConfigError

__all__ = ["Granularity", "PerChannel", "PerGroup", "PerTensor", "PerToken"]


@dataclass(frozen=True)
class Granularity:
    """Maps a tensor to a matrix [rows, cols] with one grid per row."""

    def matrix(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return (rows, cols) of a tensor of this shape."""
        raise NotImplementedError

    def to_matrix(self, t: Tensor) -> Tensor:
        """Return `t` as a contiguous matrix: a view where the memory order allows, else a copy."""
        return t.reshape(self.matrix(t.shape)).contiguous()

    def from_matrix(self, m: Tensor, shape: Sequence[int]) -> Tensor:
        """Return a matrix made by `to_matrix` in the shape of its tensor."""
        return m.reshape(tuple(shape))


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One grid for all elements.

    Example:
        >>> PerTensor().matrix((4, 6))
        (1, 24)
    """

    def matrix(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return (1, number of elements)."""
        return 1, math.prod(shape)


@dataclass(frozen=True)
class PerChannel(Granularity):
    """One grid per index of one axis: 0 for Linear and Conv2d, 1 for ConvTranspose2d.

    Example:
        >>> PerChannel(1).matrix((4, 6, 3, 3))
        (6, 36)
    """

    axis: int = 0

    def matrix(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return (size of the axis, elements per index).

        Raises:
            ConfigError: the tensor has no such axis.
        """
        if not -len(shape) <= self.axis < len(shape):
            raise ConfigError(f"axis is {self.axis}; a tensor of shape {tuple(shape)} has no such")
        rows = shape[self.axis]
        return rows, math.prod(shape) // rows if rows else 0

    def to_matrix(self, t: Tensor) -> Tensor:
        """Return `t` with the axis in front, flattened behind it."""
        return t.movedim(self.axis, 0).reshape(self.matrix(t.shape)).contiguous()

    def from_matrix(self, m: Tensor, shape: Sequence[int]) -> Tensor:
        """Return a matrix made by `to_matrix` in the shape of its tensor."""
        rest = [n for i, n in enumerate(shape) if i != self.axis % len(shape)]
        return m.reshape(len(m), *rest).movedim(0, self.axis)


@dataclass(frozen=True)
class PerGroup(Granularity):
    """One grid per `size` successive elements of each output row; ``size <= 0`` takes whole rows.

    Example:
        >>> PerGroup(32).matrix((8, 128)), PerGroup(-1).matrix((8, 128))
        ((32, 32), (8, 128))
    """

    size: int

    def matrix(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return (rows * groups per row, size).

        Raises:
            ConfigError: the size does not divide the row.
        """
        if len(shape) < 2:
            raise ConfigError(f"groups need rows; a tensor of shape {tuple(shape)} has none")
        row = math.prod(shape[1:])
        size = self.size if self.size > 0 else row
        if size == 0 or row % size:
            raise ConfigError(
                f"group size {size} does not divide the {row} elements of a row; choose a divisor, "
                f"such as {math.gcd(size, row)}, or -1 for whole rows"
            )
        return shape[0] * (row // size), size


@dataclass(frozen=True)
class PerToken(Granularity):
    """One grid per vector of the last axis: for activations.

    Example:
        >>> PerToken().matrix((2, 7, 64))
        (14, 64)
    """

    def matrix(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return (number of tokens, channels).

        Raises:
            ConfigError: the tensor has no axis.
        """
        if not shape:
            raise ConfigError("a scalar has no tokens; pass a tensor with at least one axis")
        return math.prod(shape[:-1]), shape[-1]
