"""A quantised latent as bytes: headers, check sums, and several samples in one file."""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field
from typing import NamedTuple

from cmibq.errors import PackageError

__all__ = ["CompressedLatent", "Frame", "frame", "unframe"]

_LONG, _LANES, _PACKED, _VERSION = 0x80, 0x08, 0x04, 0x70
_BATCH = 0xF0
_MOST_TOKENS = 1 << 20


def _crc7_table() -> bytes:
    table = bytearray()
    for value in range(256):
        for _ in range(8):
            value = (value << 1) ^ (0x12 if value & 0x80 else 0)
        table.append(value & 0xFF)
    return bytes(table)


_CRC7 = _crc7_table()


def crc7(data: bytes, start: int) -> int:
    """Return the check of 7 bits that SD cards use, ``x^7 + x^3 + 1``, from a start value.

    It finds every error within 7 neighbouring bits, and 127 of 128 others.

    Example:
        >>> hex(crc7(bytes([0x40, 0, 0, 0, 0]), 0))  # CMD0 of an SD card
        '0x4a'
    """
    value = (start & 0x7F) << 1
    for byte in data:
        value = _CRC7[value ^ byte]
    return value >> 1


class Frame(NamedTuple):
    """What a header says.

    Args:
        payload: side information and codes.
        tokens: T; 0 for one vector, features [B, D].
        lanes: bytes of the lanes of the range coder; () = densely packed.
    """

    payload: bytes
    tokens: int
    lanes: tuple[int, ...]


def _number(value: int) -> bytes:
    """Return a number in groups of 7 bits, the lowest first; a set top bit: more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    """Return a number, and where the bytes after it begin."""
    value = 0
    for i in range(5):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 0x7F) << (7 * i)
        if not data[at + i] & 0x80:
            return value, at + i + 1
    raise PackageError("a compressed latent ends inside its header; it was truncated or altered")


def frame(made: Frame, usual: int, fingerprint: int) -> bytes:
    """Return a stream: header and payload.

    Args:
        made: what to say.
        usual: tokens that the layer's samples usually have; they need not be said.
        fingerprint: of the layer, 16 bits.
    """
    payload = made.payload
    if made.tokens == usual and len(made.lanes) == 1:
        return bytes([crc7(payload, fingerprint)]) + payload
    first = _LONG | (_LANES if len(made.lanes) > 1 else 0) | (0 if made.lanes else _PACKED)
    head = bytes([first]) + _number(made.tokens)
    if len(made.lanes) > 1:
        payload = b"".join(_number(n) for n in made.lanes[:-1]) + payload
    check = binascii.crc_hqx(head + payload, fingerprint)
    return head + check.to_bytes(2, "big") + payload


def unframe(data: bytes, usual: int, fingerprint: int) -> Frame:
    """Return what `frame` was given.

    Raises:
        PackageError: the bytes are no stream of this layer.
    """
    if not data:
        raise PackageError("a compressed latent has no bytes; it was truncated")
    if not data[0] & _LONG:
        payload = data[1:]
        if usual < 0 or crc7(payload, fingerprint) != data[0]:
            raise _other()
        return Frame(payload, usual, (len(payload),))
    if data[0] & _VERSION:
        version = (data[0] & _VERSION) >> 4
        raise PackageError(
            f"a compressed latent has version {version}, this cmibq reads 0; install a newer"
            " one, or the bytes are no latent"
        )
    tokens, at = _read_number(data, 1)
    payload = data[at + 2 :]
    check = int.from_bytes(data[at : at + 2], "big")
    if binascii.crc_hqx(data[:at] + payload, fingerprint) != check or tokens > _MOST_TOKENS:
        raise _other()
    if data[0] & _PACKED:
        return Frame(payload, tokens, ())
    if not data[0] & _LANES:
        return Frame(payload, tokens, (len(payload),))
    sizes, at = [], 0
    for _ in range(3):
        size, at = _read_number(payload, at)
        sizes.append(size)
    rest = len(payload) - at - sum(sizes)
    if rest < 0:
        raise _other()
    return Frame(payload[at:], tokens, (*sizes, rest))


def _other() -> PackageError:
    return PackageError(
        "a compressed latent does not fit its check sum; it was truncated or altered, or another"
        " layer made it: load the state dict of the layer that compressed it"
    )


@dataclass(frozen=True)
class CompressedLatent:
    """Quantised latents, each sample a stream of its own.

    ``bytes(z)`` is the stream of a single sample; several have a count and their lengths before.

    Args:
        streams: header and payload of every sample.
        nominal_bits: bits of the codes of every sample at their fixed widths; () where not known.
        rate: bits that the layer reports for every sample; () where not known.

    Example:
        >>> z = CompressedLatent((b"abc", b"d"))
        >>> len(z), z.sizes, CompressedLatent.from_bytes(bytes(z)) == z
        (8, (3, 1), True)
    """

    streams: tuple[bytes, ...]
    nominal_bits: tuple[int, ...] = field(default=(), compare=False)
    rate: tuple[float, ...] = field(default=(), compare=False)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The bytes of every sample, with its header."""
        return tuple(len(s) for s in self.streams)

    def __len__(self) -> int:
        return len(bytes(self))

    def __bytes__(self) -> bytes:
        if len(self.streams) == 1:
            return self.streams[0]
        parts = [bytes([_BATCH]), _number(len(self.streams))]
        for stream in self.streams:
            parts += [_number(len(stream)), stream]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> CompressedLatent:
        """Return what ``bytes(z)`` wrote.

        Raises:
            PackageError: the bytes end too early, or too late.
        """
        data = bytes(data)
        if data[:1] != bytes([_BATCH]):
            if not data:
                raise PackageError("a compressed latent has no bytes; it was truncated")
            return cls((data,))
        count, at = _read_number(data, 1)
        streams = []
        for _ in range(count):
            size, at = _read_number(data, at)
            streams.append(data[at : at + size])
            at += size
            if at > len(data):
                raise PackageError(
                    f"a compressed latent of {count} samples ends inside sample {len(streams) - 1};"
                    " it was truncated"
                )
        if at != len(data):
            raise PackageError(
                f"{len(data) - at} bytes follow a compressed latent of {count} samples; it was"
                " altered"
            )
        return cls(tuple(streams))
