"""The integer codes a quantiser may use."""

from __future__ import annotations

from dataclasses import dataclass

from cmibq.errors import ConfigError

__all__ = ["QuantGrid"]


@dataclass(frozen=True)
class QuantGrid:
    """Representable codes ``qmin .. qmax``.

    Args:
        bits: width of a code, 1..16.
        signed: two's complement codes; unsigned otherwise.
        qmin: smallest code, if not the smallest of the width (a narrow grid).
        qmax: largest code, if not the largest of the width.

    Raises:
        ConfigError: bits out of range, or codes that do not fit the width or are not ordered.

    Example:
        >>> grid = QuantGrid(4)
        >>> grid.low, grid.high, grid.levels
        (0, 15, 16)
        >>> QuantGrid(8, signed=True, qmin=-127).low
        -127
    """

    bits: int
    signed: bool = False
    qmin: int | None = None
    qmax: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ConfigError(f"bits is {self.bits}; allowed are 1..16")
        least, most = self._width()
        if not least <= self.low < self.high <= most:
            raise ConfigError(
                f"codes {self.low}..{self.high} do not fit {self.bits} bits; allowed are "
                f"{least}..{most} with qmin < qmax"
            )

    def _width(self) -> tuple[int, int]:
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    @property
    def low(self) -> int:
        """Smallest code."""
        return self._width()[0] if self.qmin is None else self.qmin

    @property
    def high(self) -> int:
        """Largest code."""
        return self._width()[1] if self.qmax is None else self.qmax

    @property
    def levels(self) -> int:
        """Number of codes."""
        return self.high - self.low + 1
