"""Scales between the values of grouped attention and the layer that reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmibq.errors import ModelError

__all__ = ["ValueHeads", "scaled_rows"]


@dataclass(frozen=True)
class ValueHeads:
    """Which rows of a layer make the values that an output layer reads, several times over.

    Under grouped attention the values of one head are read by `repeats` heads of the output layer:
    the scales of these must be one and the same.

    Args:
        count: heads of values.
        repeats: heads of queries for each of them.
        width: channels of a head.
        stride: rows from one head of values to the next; more than `width` where queries and keys
            stand between them (InternLM2's wqkv).
        offset: first row of the first head of values.

    References:
        Ainslie et al., "GQA", EMNLP 2023; row order of InternLM2: "b q (h gs d)", values last.

    Example:
        >>> ValueHeads(count=1, repeats=2, width=2, stride=2).tie(torch.tensor([1.0, 2, 3, 6]))
        tensor([2., 4., 2., 4.])
        >>> ValueHeads(count=2, repeats=2, width=1, stride=4, offset=3).rows()
        tensor([3, 7])
    """

    count: int
    repeats: int
    width: int
    stride: int
    offset: int = 0

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(self.count, self.repeats, self.width)

    def tie(self, x: Tensor) -> Tensor:
        """Replace what belongs to the same value channel by its mean: [K] -> [K]."""
        mean = self._by_head(x).mean(1, keepdim=True)
        return mean.expand(-1, self.repeats, -1).reshape(-1).contiguous()

    def rows(self) -> Tensor:
        """Return the rows that make the values, int64 [count * width]."""
        heads = self.offset + self.stride * torch.arange(self.count)
        return (heads[:, None] + torch.arange(self.width)).flatten()

    def shared(self, scales: Tensor) -> Tensor:
        """Return the scale of each value channel, [count * width].

        Raises:
            ModelError: channels that read one value have several scales.
        """
        if scales.numel() != self.count * self.repeats * self.width:
            raise ModelError(
                f"{scales.numel()} scales for {self.count} x {self.repeats} heads of {self.width}"
            )
        heads = self._by_head(scales)
        if not torch.equal(heads, heads[:, :1].expand_as(heads)):
            raise ModelError(
                "heads that read the same values have several scales; the scales were made for"
                " another model, search them again"
            )
        return heads[:, 0].flatten()


def scaled_rows(
    values: ValueHeads | None, size: int, scales: Tensor, *, whole: bool
) -> tuple[Tensor | None, Tensor]:
    """Return which rows of what stands before a group are divided, and by what.

    Args:
        values: see `LinearGroup.values`.
        size: rows there are.
        scales: [K].
        whole: all rows are scaled (a norm); otherwise the last K.

    Returns:
        (int64 rows, or None where they do not fit; their scales).
    """
    if values is not None:
        rows, own = values.rows(), values.shared(scales)
        return (rows if int(rows[-1]) < size else None), own
    count = len(scales)
    fits = size == count if whole else size >= count
    return (torch.arange(size - count, size) if fits else None), scales
