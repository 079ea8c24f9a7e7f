"""Samples of one candidate, some of them taken while the machine was busy with other things."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

__all__ = ["Samples"]


@dataclass
class Samples:
    """Values with a flag each: taken on a quiet machine or not.

    Example:
        >>> s = Samples()
        >>> for value, clean in ((1.0, True), (9.0, False), (2.0, True), (3.0, True)):
        ...     s.add(value, clean)
        >>> s.median(), s.clean, s.total
        (2.0, 3, 4)
    """

    values: list[float] = field(default_factory=list)
    flags: list[bool] = field(default_factory=list)

    def add(self, value: float, clean: bool) -> None:
        """Take one more sample."""
        self.values.append(value)
        self.flags.append(clean)

    @property
    def clean(self) -> int:
        """Samples taken on a quiet machine."""
        return sum(self.flags)

    @property
    def total(self) -> int:
        """All samples."""
        return len(self.values)

    def median(self) -> float:
        """Return the median of the clean samples, or of all where fewer than two are clean."""
        clean = [v for v, ok in zip(self.values, self.flags, strict=True) if ok]
        return statistics.median(clean if len(clean) > 1 else self.values)
