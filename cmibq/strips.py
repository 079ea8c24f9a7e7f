"""Widths of the codes of a weight: one for the whole, or one for every 16 outputs (a strip)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from cmibq.errors import ConfigError

__all__ = ["STRIP", "Bits", "Widths", "check_bits", "describe", "packed_bytes", "runs", "single"]

STRIP: Final = 16
"""Successive outputs that have codes of one width, as ``CQ_STRIP`` in ``csrc/core/qgemm.h``."""

Bits = int | Sequence[int]
"""A width, or one for every `STRIP` successive outputs; the last strip may have fewer outputs.

Equal widths are the same as one.
"""

Widths = int | tuple[int, ...]
"""The same where it is known to be right: a tuple has different widths."""


def single(bits: Bits) -> int | None:
    """Return the width if it is one for all outputs, else None.

    Example:
        >>> single(4), single((4, 4)), single((2, 4))
        (4, 4, None)
    """
    if isinstance(bits, int):
        return bits
    return int(bits[0]) if len(bits) and min(bits) == max(bits) else None


def describe(bits: Bits) -> str:
    """Return the widths that occur, growing: for ``repr``.

    Example:
        >>> describe(4), describe((8, 2, 8))
        ('4', '2|8')
    """
    return str(bits) if isinstance(bits, int) else "|".join(map(str, sorted(set(bits))))


def check_bits(bits: Bits, outs: int, *, least: int = 2) -> list[int]:
    """Return the width of every strip of a weight.

    Args:
        bits: a width, or one for every 16 outputs.
        outs: outputs of the weight.
        least: smallest width allowed.

    Returns:
        ``ceil(outs / 16)`` widths.

    Raises:
        ConfigError: another number of widths, or one outside ``least..8``.

    Example:
        >>> check_bits((2, 4), 20), check_bits(3, 20)
        ([2, 4], [3, 3])
    """
    strips, one = -(-outs // STRIP), isinstance(bits, int)
    widths = [bits] if isinstance(bits, int) else bits
    widths = list(getattr(widths, "tolist", lambda: widths)())  # of an array, Python numbers
    if not one and len(widths) != strips:
        raise ConfigError(
            f"bits has {len(widths)} widths for {outs} outputs; give one width, or {strips}: one "
            f"for every {STRIP} outputs"
        )
    for at, width in enumerate(widths):
        if type(width) is not int or not least <= width <= 8:
            where = "bits" if one else f"bits[{at}]"
            raise ConfigError(f"{where} is {width!r}; allowed are {least}..8")
    return widths * strips if one else widths


def runs(bits: Bits, outs: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, width) of every run of outputs with one width.

    Example:
        >>> list(runs((2, 2, 4), 40)), list(runs(3, 40))
        ([(0, 32, 2), (32, 40, 4)], [(0, 40, 3)])
    """
    if isinstance(bits, int):
        yield 0, outs, bits
        return
    start = 0
    for width, strips in groupby(bits):
        stop = min(start + STRIP * len(list(strips)), outs)
        yield start, stop, int(width)
        start = stop


def packed_bytes(bits: Bits, outs: int, cols: int) -> int:
    """Return the bytes of the packed codes of a matrix [outs, cols], every row in whole bytes.

    Example:
        >>> packed_bytes((2, 4), 20, 8)  # 16 rows of 2 bytes, 4 of 4
        48
    """
    return sum((stop - start) * -(-cols * width // 8) for start, stop, width in runs(bits, outs))
