"""Range coding: symbols in as many bits as their probabilities say, in the fewest bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmibq.errors import PackageError
from cmibq.memory import empty
from cmibq.runtime import kernels

__all__ = [
    "RangeStream",
    "RangeTables",
    "integer_frequencies",
    "range_bits",
    "range_decode",
    "range_encode",
]

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
_TOTAL = 1 << 16
_MOST_LANES = 4


def integer_frequencies(probabilities: ArrayLike) -> NDArray[np.int64]:
    """Return integers that sum to 65536 in every row, each at least 1, close to probabilities.

    Of ``n`` symbols each gets 1, and its share of ``65536 - n`` by what its probability is above
    1/65536, rounded down; the rest goes by one to the largest remainders, of equal ones to the
    first.

    Args:
        probabilities: [.., n], n in 1..256, not negative; rows are scaled to sum to 1.

    Returns:
        int64 [.., n].

    Raises:
        ValueError: too many symbols, a row that is negative, not finite or all 0.

    Example:
        >>> integer_frequencies([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
        array([[32768, 16384, 16384],
               [65534,     1,     1]])
    """
    p = np.asarray(probabilities, np.float64)
    n = p.shape[-1]
    total = p.sum(-1, keepdims=True)
    if not 1 <= n <= 256 or not (np.isfinite(total).all() and (p >= 0).all() and (total > 0).all()):
        raise ValueError(
            f"integer_frequencies: probabilities has rows of {n}; give 1..256 finite numbers"
            " from 0, not all 0"
        )
    above = np.maximum(p / total - 1 / _TOTAL, 0)
    above *= (_TOTAL - n) / np.where(n == 1, 1, above.sum(-1, keepdims=True))
    found = np.floor(above).astype(np.int64)
    left = _TOTAL - n - found.sum(-1, keepdims=True)
    rank = np.argsort(np.argsort(found - above, axis=-1, kind="stable"), axis=-1, kind="stable")
    found += 1 + (rank < left)
    found[..., :1] += _TOTAL - found.sum(-1, keepdims=True)
    return np.asarray(found, np.int64)


@dataclass(frozen=True)
class RangeTables:
    """Tables of symbols, one after the other.

    Args:
        cdf: uint16 [E], the lower end of every symbol in 65536ths; a table begins with 0 and rises.
        first: uint32 [K + 1], where each table starts in `cdf`; at the end, E.
    """

    cdf: NDArray[np.uint16]
    first: NDArray[np.uint32]

    @classmethod
    def of(cls, frequencies: Sequence[ArrayLike]) -> RangeTables:
        """Return the tables of integer frequencies, each summing to 65536.

        Example:
            >>> RangeTables.of([[65536], [49152, 16384]])
            RangeTables(cdf=array([    0,     0, 49152], dtype=uint16), first=array([0, 1, 3], ...
        """
        rows = [np.asarray(f, np.int64) for f in frequencies]
        sizes = [len(row) for row in rows]
        first = np.cumsum([0, *sizes]).astype(np.uint32)
        flat = np.concatenate([*rows, np.zeros(0, np.int64)])
        return cls.joined(flat, first)

    @classmethod
    def joined(cls, frequencies: NDArray[np.int64], first: NDArray[np.uint32]) -> RangeTables:
        """Return the tables of frequencies [E] that lie one after the other.

        Raises:
            PackageError: a frequency below 1, or a table that does not sum to 65536.
        """
        sums = np.add.reduceat(frequencies, first[:-1]) if len(first) > 1 else np.zeros(0, np.int64)
        if (frequencies < 1).any() or (sums != _TOTAL).any():
            raise PackageError(
                "frequencies of a table must be at least 1 and sum to 65536; these were altered,"
                " make them with integer_frequencies"
            )
        before = np.cumsum(frequencies) - frequencies
        start = np.repeat(before[first[:-1]], first[1:] - first[:-1])
        return cls((before - start).astype(np.uint16), first)

    def frequencies(self) -> NDArray[np.int64]:
        """Return the share of every symbol in 65536ths, int64 [E]."""
        ends = np.append(self.cdf[1:], 0).astype(np.int64)
        ends[self.first[1:].astype(np.int64) - 1] = _TOTAL
        return ends - self.cdf


class RangeStream(NamedTuple):
    """Coded symbols.

    Args:
        payload: the lanes, one after the other.
        sizes: bytes of each lane.
    """

    payload: bytes
    sizes: tuple[int, ...]


def _group(group: I32 | None, rows: int, contexts: int) -> I32:
    """Return the row of contexts of every row: that of its number, or the only one."""
    if group is not None:
        return group
    return np.arange(rows, dtype=np.int32) if contexts > 1 else np.zeros(rows, np.int32)


def range_encode(
    symbols: U8, tables: RangeTables, context: I32, *, group: I32 | None = None, lanes: int = 1
) -> RangeStream:
    """Code a matrix of symbols, row by row.

    A lane takes the fewest bytes that say which symbols they were: on average a third of a byte
    more than their information, and less than one in the worst case. Symbols of tables with one
    entry cost nothing.

    Args:
        symbols: uint8 [R, C], each below the size of its table.
        tables: of which there are K.
        context: int32 [G, C], the table of every column, in G ways.
        group: int32 [R], the way of every row; None: row r has way r, or the only one.
        lanes: 1..4 parts that are decoded at the same time; more than one pays from some kilobytes.

    Raises:
        ValueError: a symbol, table or context out of range.

    Example:
        >>> tables = RangeTables.of([integer_frequencies([0.99, 0.01])])
        >>> symbols = np.ones((1, 8), np.uint8)  # 8 * log2(100) bits are 6.6 bytes
        >>> len(range_encode(symbols, tables, np.zeros((1, 8), np.int32)).payload)
        7
    """
    if not 1 <= lanes <= _MOST_LANES:
        raise ValueError(f"range_encode: lanes is {lanes}; allowed are 1..{_MOST_LANES}")
    k, (rows, cols) = kernels(), symbols.shape
    out = empty((lanes, k.rangecode_bytes(rows, cols, lanes)), np.uint8)
    sizes = np.zeros(lanes, np.int64)
    work = empty((k.rangecode_workspace(len(context), cols) // 4,), np.uint32)
    group = _group(group, rows, len(context))
    k.rangecode_encode(tables.cdf, tables.first, context, group, symbols, out, sizes, work)
    payload = b"".join(out[i, : sizes[i]].tobytes() for i in range(lanes))
    return RangeStream(payload, tuple(int(n) for n in sizes))


def range_decode(
    stream: RangeStream,
    tables: RangeTables,
    context: I32,
    rows: int,
    *,
    group: I32 | None = None,
    partial: bool = False,
) -> U8:
    r"""Return the symbols that `range_encode` coded with the same tables and contexts.

    Args:
        stream: payload and sizes.
        tables: as for encoding.
        context: int32 [G, C].
        rows: R.
        group: int32 [R].
        partial: only the first rows of a stream are wanted; what they are is not checked.

    Returns:
        uint8 [R, C]; 0 where a table has one entry.

    Raises:
        PackageError: no symbols are coded by these bytes.
        ValueError: a table or context out of range.

    Example:
        >>> tables = RangeTables.of([integer_frequencies([3, 1]), integer_frequencies([1])])
        >>> context, symbols = np.int32([[0, 1, 0]]), np.uint8([[1, 0, 0], [0, 0, 1]])
        >>> stream = range_encode(symbols, tables, context)
        >>> stream.payload, range_decode(stream, tables, context, 2)
        (b'\xdb', array([[1, 0, 0],
               [0, 0, 1]], dtype=uint8))
    """
    payload, sizes = np.frombuffer(stream.payload, np.uint8), np.array(stream.sizes, np.int64)
    if not 1 <= len(sizes) <= _MOST_LANES or (sizes < 0).any() or sizes.sum() != len(payload):
        raise PackageError(
            f"lanes of {stream.sizes} bytes do not make a payload of {len(payload)}; it was"
            " truncated or altered"
        )
    k, cols = kernels(), context.shape[1]
    symbols, whole = empty((rows, cols), np.uint8), np.zeros(len(sizes), np.uint8)
    work = empty((k.rangecode_workspace(len(context), cols) // 4,), np.uint32)
    group = _group(group, rows, len(context))
    k.rangecode_decode(
        *(tables.cdf, tables.first, context, group, payload, sizes, symbols, whole, work)
    )
    if not partial and not whole.all():
        raise PackageError(
            f"lane {int(np.argmin(whole))} is nothing that these tables code; the stream was"
            " truncated or altered, or made by another layer"
        )
    return symbols


def range_bits(
    symbols: U8, tables: RangeTables, context: I32, *, group: I32 | None = None
) -> NDArray[np.float64]:
    """Return the bits of information of every row under the tables, float64 [R].

    Example:
        >>> tables = RangeTables.of([integer_frequencies([3, 1])])
        >>> range_bits(np.uint8([[1, 1], [1, 0]]), tables, np.int32([[0, 0]])).round(3)
        array([4.   , 2.415])
    """
    bits = 16 - np.log2(tables.frequencies())
    group = _group(group, len(symbols), len(context))
    total: NDArray[np.float64] = bits[tables.first[context[group]] + symbols].sum(1)
    return total
