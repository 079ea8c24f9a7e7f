"""Codes of one sample to a payload and back: the tables of a finalised layer, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmibq.arrays.rangecode import (
    RangeStream,
    RangeTables,
    range_bits,
    range_decode,
    range_encode,
)
from cmibq.errors import PackageError

__all__ = ["CodeBook", "Codes"]

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
_WIDTHS = range(1, 9)
_LARGE = 2048


class Codes(NamedTuple):
    """One sample.

    Args:
        codes: uint8 [T, L].
        bits: uint8 [T, L], their widths.
        map_index: of the map in force.
        levels: uint8 [T], levels of the token gain; zeros without.
    """

    codes: U8
    bits: U8
    map_index: int
    levels: U8


@dataclass(frozen=True)
class CodeBook:
    """Tables of a layer.

    Args:
        maps: uint8 [M, levels, L], bits of every channel.
        tables: of the range coder; number 0 has one symbol.
        ids: int32 [L, 9], the table of every channel and width; 0 where there is none.
        side: the tables of the map index and of the levels of tokens; 0 = not sent.
        levels: whether tokens have levels.
    """

    maps: U8
    tables: RangeTables
    ids: I32
    side: tuple[int, int]

    @classmethod
    def of(
        cls,
        frequencies: NDArray[np.int64],
        maps: U8,
        indices: NDArray[np.int64],
        levels: NDArray[np.int64],
    ) -> CodeBook:
        """Return the book of integer frequencies, 0 where a width is not used.

        Args:
            frequencies: [L, 511], those of every width one after the other.
            maps: uint8 [M, levels, L].
            indices: [M], of the map index; one: it is not sent.
            levels: of the levels of tokens; one: they are not sent.

        Raises:
            PackageError: a table does not sum to 65536, or a width of a map has none.
        """
        channels = len(frequencies)
        used = np.zeros((channels, 9), bool)
        for b in _WIDTHS:
            used[:, b] = frequencies[:, 2**b - 1] > 0
        ids = np.where(used, np.cumsum(used).reshape(used.shape), 0).astype(np.int32)
        flat, sizes = [np.full(1, 65536)], [1]
        flat.append(frequencies[frequencies > 0])
        sizes += (2 ** np.nonzero(used)[1]).tolist()
        side = [0, 0]
        for i, some in enumerate((indices, levels)):
            if len(some) > 1:
                side[i] = len(sizes)
                flat.append(some)
                sizes.append(len(some))
        first = np.cumsum([0, *sizes]).astype(np.uint32)
        joined = np.concatenate(flat)
        sent = ids[np.arange(channels), maps]
        if len(joined) != first[-1] or (sent[maps > 0] == 0).any():
            raise PackageError(
                "the integer tables of the layer do not fit its maps; its state was altered, call"
                " layer.finalize_() again"
            )
        return cls(maps, RangeTables.joined(joined, first), ids, (side[0], side[1]))

    def _sides(self, tokens: int) -> tuple[I32, int]:
        """Return the contexts of map index and levels as whole rows, and how many are in use."""
        wanted = [self.side[0]] * (self.side[0] > 0) + [self.side[1]] * tokens * (self.side[1] > 0)
        channels = len(self.ids)
        rows = -(-len(wanted) // channels)
        context = np.zeros((rows, channels), np.int32)
        context.ravel()[: len(wanted)] = wanted
        return context, len(wanted)

    def _contexts(self, map_index: int, levels: U8, side: I32) -> tuple[I32, I32]:
        """Return the contexts of all rows, and which row has which."""
        rows = self.ids[np.arange(len(self.ids)), self.maps[map_index]]
        group = np.concatenate([np.arange(len(side)), len(side) + levels.astype(np.int64)])
        return np.concatenate([side, rows]), group.astype(np.int32)

    def bits(self, sample: Codes) -> float:
        """Return the bits of a sample under the tables, with map index and levels."""
        symbols, tables, context, group = self._symbols(sample)
        return float(range_bits(symbols, tables, context, group=group).sum())

    def _symbols(self, sample: Codes) -> tuple[U8, RangeTables, I32, I32]:
        """Return what is coded: symbols, tables, contexts, and which row has which."""
        side, used = self._sides(len(sample.codes))
        symbols = np.zeros(side.shape, np.uint8)
        told = [sample.map_index] if self.side[0] else []
        symbols.ravel()[:used] = [*told, *(sample.levels if self.side[1] else ())]
        context, group = self._contexts(sample.map_index, sample.levels, side)
        return np.concatenate([symbols, sample.codes]), self.tables, context, group

    def encode(self, sample: Codes) -> RangeStream:
        """Return the stream of a sample, in four lanes where it is large."""
        symbols, tables, context, group = self._symbols(sample)
        made = range_encode(symbols, tables, context, group=group)
        if len(made.payload) < _LARGE:
            return made
        return range_encode(symbols, tables, context, group=group, lanes=4)

    def decode(self, stream: RangeStream, tokens: int) -> Codes:
        """Return the sample of a stream.

        Raises:
            PackageError: it is the stream of no sample.
        """
        side, used = self._sides(tokens)
        told = range_decode(stream, self.tables, side, len(side), partial=True).ravel()[:used]
        map_index = int(told[0]) if self.side[0] else 0
        levels = told[-tokens:] if self.side[1] else np.zeros(tokens, np.uint8)
        context, group = self._contexts(map_index, levels, side)
        rows = len(side) + tokens
        symbols = range_decode(stream, self.tables, context, rows, group=group)
        return Codes(symbols[len(side) :], self.maps[map_index, levels], map_index, levels)

    def _head(self) -> tuple[int, int]:
        """Return the bits of the map index, and of a level, in a dense stream."""
        levels = self.maps.shape[1]
        return (8 if self.side[0] else 0), (levels - 1).bit_length() if self.side[1] else 0

    def pack(self, sample: Codes) -> bytes:
        """Return a sample densely packed, each code in its width, the lowest bit first."""
        index, level = self._head()
        parts = [_bits(np.array([sample.map_index]), np.array([index]))]
        parts.append(_bits(sample.levels, np.full(len(sample.levels), level)))
        parts.append(_bits(sample.codes.ravel(), sample.bits.ravel()))
        return np.packbits(np.concatenate(parts), bitorder="little").tobytes()

    def unpack(self, payload: bytes, tokens: int) -> Codes:
        """Return the sample that `pack` packed.

        Raises:
            PackageError: too few or too many bytes, or a map or level that there is not.
        """
        bits = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little")
        index, level = self._head()
        at = index + level * tokens
        if at > len(bits):
            raise _misfit()
        map_index = int(_values(bits[:index], np.array([index]))[0])
        levels = _values(bits[index:at], np.full(tokens, level))
        if map_index >= len(self.maps) or (levels >= self.maps.shape[1]).any():
            raise _misfit()
        widths = self.maps[map_index, levels]
        stop = at + int(widths.sum(dtype=np.int64))
        if len(bits) != -(-stop // 8) * 8 or bits[stop:].any():
            raise _misfit()
        codes = _values(bits[at:stop], widths.ravel()).reshape(widths.shape)
        return Codes(codes, widths, map_index, levels)


def _misfit() -> PackageError:
    return PackageError(
        "a compressed latent has other bytes than its bit map needs; it was truncated or altered,"
        " or another layer made it"
    )


def _bits(values: NDArray[np.integer], widths: NDArray[np.integer]) -> U8:
    """Return the bits of values, each in its width, the lowest first."""
    some = np.nonzero(widths)[0]
    spread = values[some, None].astype(np.uint8) >> np.arange(8, dtype=np.uint8) & np.uint8(1)
    return np.asarray(spread[np.arange(8) < widths[some, None]], np.uint8)


def _values(bits: U8, widths: NDArray[np.integer]) -> U8:
    """Return the values whose bits these are."""
    some = np.nonzero(widths)[0]
    spread = np.zeros((len(some), 8), np.uint8)
    spread[np.arange(8) < widths[some, None]] = bits
    found = np.zeros(len(widths), np.uint8)
    found[some] = np.packbits(spread, axis=1, bitorder="little")[:, 0]
    return found
