"""Integer tables of a finalised layer, in its state dict."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmibq.arrays.rangecode import integer_frequencies
from cmibq.errors import PackageError
from cmibq.nn.ib_maps import HostIntegers
from cmibq.nn.latent_code import CodeBook
from cmibq.ops.channel_bits import MOST_BITS, TABLE

__all__ = ["Book", "LatentTables"]


def _stored(values: NDArray[np.int64]) -> Tensor:
    """Return integers below 65536 as two bytes each, the lower first."""
    return torch.from_numpy(values.astype("<u2").view(np.uint8).reshape(*values.shape, 2))


def _read(held: Tensor) -> NDArray[np.int64]:
    """Return what `_stored` stored."""
    flat = np.ascontiguousarray(held.cpu().numpy()).view("<u2")[..., 0]
    return np.asarray(flat, np.int64)


def _bits(frequencies: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.asarray(16 - np.log2(np.maximum(frequencies, 1)), np.float32)


class Book(NamedTuple):
    """What a layer codes with.

    Args:
        code: tables of the coder.
        rates: bits of every code, [L, 511]; its width where a width is not coded.
        indices: bits of every map index, [M].
        levels: bits of every level of the token gain, [levels].
        fingerprint: 16 bits that other tables, maps or ends hardly have.
    """

    code: CodeBook
    rates: Tensor
    indices: Tensor
    levels: Tensor
    fingerprint: int


class LatentTables(HostIntegers):
    """What turns codes into bytes and back without a float network; all 0 before `fill_`.

    Buffers have the same shapes before and after, so a finalised state loads into a fresh layer.

    Args:
        channels: L.
        most: most maps.
        levels: levels of the token gain; 1 = without.
    """

    frequencies: Tensor
    indices: Tensor
    levels: Tensor
    units: Tensor

    def __init__(self, channels: int, most: int, levels: int) -> None:
        super().__init__()
        for name, shape in (("frequencies", (channels, TABLE)), ("indices", (most,))):
            self.register_buffer(name, torch.zeros(*shape, 2, dtype=torch.uint8))
        self.register_buffer("levels", torch.zeros(levels, 2, dtype=torch.uint8))
        self.register_buffer("units", torch.zeros(TABLE))
        self.register_buffer("ready", torch.zeros((), dtype=torch.int64))
        self.register_buffer("tokens", torch.full((), -1, dtype=torch.int64))

    @property
    def filled(self) -> bool:
        """Whether there are tables."""
        return self._read("ready") > 0

    @property
    def usual(self) -> int:
        """Tokens of a sample that a stream need not say; 0 = features [B, D], -1 = not known."""
        return self._read("tokens")

    def watch(self, tokens: int) -> None:
        """Take in a step of training: the tables are no longer those of the layer."""
        if self.filled:
            self._write("ready", 0)
        if self.usual != tokens:
            self._write("tokens", tokens)

    @torch.no_grad()
    def fill_(self, rates: Tensor, maps: Tensor, counts: Tensor, levels: Tensor) -> None:
        """Make integers, for the widths that maps have.

        Args:
            rates: [L, 511] bits of all codes.
            maps: uint8 [M, levels, L].
            counts: [M], how often each map is used.
            levels: [levels], how often each level of the token gain is.
        """
        told, bits = rates.double().cpu().numpy(), maps.flatten(0, 1).cpu().numpy()
        found = np.zeros(told.shape, np.int64)
        for b in range(1, 9):
            rows, part = (bits == b).any(0), slice(2**b - 1, 2 ** (b + 1) - 1)
            if rows.any():
                found[rows, part] = integer_frequencies(0.5 ** told[rows, part])
        self.frequencies.copy_(_stored(found))
        for held, weights in ((self.indices, counts), (self.levels, levels)):
            held.zero_()
            if len(weights) > 1:
                some = integer_frequencies(weights.double().cpu().numpy())
                held[: len(some)].copy_(_stored(some))
        self._write("ready", 1)

    def book(self, maps: Tensor, ends: Sequence[Tensor]) -> Book:
        """Return what the layer codes with.

        Args:
            maps: uint8 [M, levels, L].
            ends: lowest and highest level of every channel.

        Raises:
            PackageError: the tables or the maps were altered.
        """
        frequencies, whole = _read(self.frequencies), maps.cpu().numpy()
        if whole.max(initial=0) > MOST_BITS:
            raise PackageError(
                f"bit_maps.table holds {whole.max()} bits for a channel; allowed are 0 to"
                f" {MOST_BITS}: the state dict is damaged, load it again from its checkpoint"
            )
        indices, levels = _read(self.indices)[: len(maps)], _read(self.levels)
        code = CodeBook.of(frequencies, whole, indices, levels)
        width = np.floor(np.log2(np.arange(TABLE) + 1)).astype(np.float32)
        rates = np.where(frequencies > 0, _bits(frequencies), width)
        check = 0
        for part in (frequencies, indices, levels, whole, self.units, *ends):
            data = part.detach().float().cpu().numpy() if isinstance(part, Tensor) else part
            check = zlib.crc32(np.ascontiguousarray(data).tobytes(), check)
        sides = [
            _bits(some) if len(some) > 1 else np.zeros(1, np.float32) for some in (indices, levels)
        ]
        told = [torch.from_numpy(t).to(self.units.device) for t in (rates, *sides)]
        return Book(code, told[0], told[1], told[2], check & 0xFFFF)
