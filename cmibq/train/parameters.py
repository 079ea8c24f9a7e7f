"""How many parameters a model has, part by part, and how many of them are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

__all__ = ["Row", "count", "format_table", "total"]


@dataclass(frozen=True)
class Row:
    """One part.

    Args:
        name: of the part.
        parameters: elements of all of them; shared ones count where they come first.
        trainable: elements of those that are trained.
    """

    name: str
    parameters: int
    trainable: int

    @property
    def share(self) -> float:
        """Return the trained share."""
        return self.trainable / self.parameters if self.parameters else 0.0


def count(parts: Mapping[str, nn.Module | None]) -> list[Row]:
    """Return a row for each part; weights of the ``meta`` device count as well.

    Args:
        parts: name -> module; parts that are None are left out.

    Example:
        >>> linear = nn.Linear(3, 2)
        >>> count({"a": linear, "b": nn.Linear(2, 2, bias=False).requires_grad_(False)})
        [Row(name='a', parameters=8, trainable=8), Row(name='b', parameters=4, trainable=0)]
    """
    seen, made = set[int](), list[Row]()
    for name, module in parts.items():
        if module is None:
            continue
        fresh = [p for p in module.parameters() if id(p) not in seen]
        seen |= {id(p) for p in fresh}
        trained = sum(p.numel() for p in fresh if p.requires_grad)
        made.append(Row(name, sum(p.numel() for p in fresh), trained))
    return made


def total(rows: Sequence[Row], name: str) -> Row:
    """Return the sum of rows."""
    return Row(name, sum(r.parameters for r in rows), sum(r.trainable for r in rows))


def format_table(rows: Sequence[Row]) -> str:
    """Return rows as text, numbers under numbers.

    Example:
        >>> print(format_table([Row("towers", 600, 0), Row("fusions", 20, 20)]))
        module   parameters  trainable   share
        towers          600          0    0.0%
        fusions          20         20  100.0%
    """
    head = ("module", "parameters", "trainable", "share")
    cells = [
        (r.name, f"{r.parameters:,}", f"{r.trainable:,}", f"{100 * r.share:.1f}%") for r in rows
    ]
    widths = [max(len(row[i]) for row in (head, *cells)) for i in range(4)]
    lines = [
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *cells)
    ]
    return "\n".join(lines)
