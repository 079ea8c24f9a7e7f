"""Bytes on disk of packed rows, as `docs/formats.md` has them: codes, scales, zero points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cmibq.errors import ConfigError

__all__ = ["layer_bytes", "row_bytes"]


def row_bytes(inputs: int, bits: int, group: int, *, symmetric: bool = False) -> int:
    """Return the bytes of one output row of a packed layer.

    Args:
        inputs: inputs of the layer.
        bits: width of the codes, 1..8.
        group: inputs that share a scale; 0 or less: the whole row.
        symmetric: without zero points.

    Returns:
        ``ceil(inputs * bits / 8)`` for the codes, 2 per group for float16 scales, and
        ``ceil(groups * bits / 8)`` for zero points.

    Raises:
        ConfigError: groups that do not divide the row.

    Example:
        >>> row_bytes(128, 4, 32)
        74
    """
    size = inputs if group <= 0 else group
    if inputs <= 0 or inputs % size or not 1 <= bits <= 8:
        raise ConfigError(
            f"inputs is {inputs}, group {group}, bits {bits}; a group must divide the row"
        )
    groups = inputs // size
    zeros = 0 if symmetric else -(-groups * bits // 8)
    return -(-inputs * bits // 8) + 2 * groups + zeros


def layer_bytes(
    shapes: Sequence[tuple[int, int]],
    bits: Sequence[int],
    group: int,
    *,
    symmetric: bool = False,
) -> NDArray[np.int64]:
    """Return the bytes of every layer at every width: costs for `cmibq.alloc.Units`.

    Args:
        shapes: (outputs, inputs) of each layer; (1, inputs) where each output row is a unit.
        bits: the widths.
        group: as in `row_bytes`.
        symmetric: as in `row_bytes`.

    Returns:
        int64 [layers, widths].

    Example:
        >>> layer_bytes([(64, 128)], (3, 4), 32)
        array([[3712, 4736]])
    """
    rows = [[n * row_bytes(k, b, group, symmetric=symmetric) for b in bits] for n, k in shapes]
    return np.array(rows, np.int64).reshape(len(shapes), len(bits))
