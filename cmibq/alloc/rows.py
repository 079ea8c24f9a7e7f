"""Groups of output rows as units: their bytes, and the bits of layers that come of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cmibq.alloc.size import row_bytes
from cmibq.errors import ConfigError
from cmibq.strips import STRIP

__all__ = ["layer_bits", "row_group_bytes"]


def _counts(outputs: int, rows: int) -> list[int]:
    """Return the outputs of every row group of a layer; the last may have fewer."""
    if rows <= 0 or rows % STRIP:
        raise ConfigError(f"rows is {rows}; packed layers change their bits every {STRIP} outputs")
    return [min(rows, outputs - start) for start in range(0, outputs, rows)]


def row_group_bytes(
    shapes: Sequence[tuple[int, int]],
    bits: Sequence[int],
    group: int,
    *,
    rows: int = STRIP,
    symmetric: bool = False,
) -> NDArray[np.int64]:
    """Return the bytes of every group of rows at every width: costs for `cmibq.alloc.Units`.

    Args:
        shapes: (outputs, inputs) of each layer.
        bits: the widths.
        group: inputs that share a scale; 0 or less: the whole row.
        rows: outputs of a unit, a multiple of 16; the last unit of a layer may have fewer.
        symmetric: without zero points.

    Returns:
        int64 [units, widths], the units of one layer after those of the other. With the byte that a
        layer of mixed bits stores for every 16 outputs; one whose bits come out equal saves it.

    Raises:
        ConfigError: rows that are no multiple of 16, groups that do not divide a row.

    Example:
        >>> row_group_bytes([(40, 128)], (2, 4), 32, rows=32)
        array([[1314, 2370],
               [ 329,  593]])
    """
    table = []
    for outputs, inputs in shapes:
        each = [row_bytes(inputs, b, group, symmetric=symmetric) for b in bits]
        table += [[n * size - (-n // STRIP) for size in each] for n in _counts(outputs, rows)]
    return np.array(table, np.int64).reshape(-1, len(bits))


def layer_bits(
    bits: NDArray[np.uint8], shapes: Sequence[tuple[int, int]], *, rows: int = STRIP
) -> list[tuple[int, ...]]:
    """Return the widths of each layer, one for every 16 outputs: ``bits`` of `QuantSpec`.

    Args:
        bits: uint8 [units], such as `Allocation.bits`; units as in `row_group_bytes`.
        shapes: as in `row_group_bytes`.
        rows: as in `row_group_bytes`.

    Raises:
        ConfigError: another number of units than the layers have row groups.

    Example:
        >>> layer_bits(np.uint8([2, 4, 3]), [(40, 128), (16, 64)], rows=32)
        [(2, 2, 4), (3,)]
    """
    counts = [_counts(outputs, rows) for outputs, _ in shapes]
    units = sum(map(len, counts))
    if bits.shape != (units,):
        raise ConfigError(f"bits is {bits.shape}; the layers have {units} groups of {rows} rows")
    widths, at = [], 0
    for layer in counts:
        strips = [-(-n // STRIP) for n in layer]
        widths.append(tuple(np.repeat(bits[at : at + len(layer)], strips).tolist()))
        at += len(layer)
    return widths
