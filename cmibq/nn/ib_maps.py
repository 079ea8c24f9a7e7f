"""The integer bit maps that a frozen layer chooses from, in its state dict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmibq.alloc.medoids import choose_maps, nearest_map
from cmibq.errors import ModelError
from cmibq.ops.peers import all_gather_rows

__all__ = ["BitMaps", "HostIntegers"]

RECENT = 512
_PER_STEP = 64


class HostIntegers(nn.Module):
    """A module that reads integers from its buffers without waiting for a device each time."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[str, tuple[Tensor, int, int]] = {}

    def _read(self, name: str) -> int:
        """Return the integer in a buffer; it waits only when another has been put there."""
        held = getattr(self, name)
        assert isinstance(held, Tensor)
        known = self._known.get(name)
        if held.is_inference():
            return int(held)
        if known is None or known[0] is not held or known[1] != held._version:
            known = self._known[name] = (held, held._version, int(held))
        return known[2]

    def _write(self, name: str, value: int) -> None:
        """Put an integer into a buffer."""
        held = getattr(self, name)
        assert isinstance(held, Tensor)
        with torch.no_grad():
            held.fill_(value)
        if not held.is_inference():
            self._known[name] = held, held._version, value

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": {}}


class BitMaps(HostIntegers):
    """At most 256 integer maps, each for all levels of the token gain, and what they are made of.

    Buffers have the same shapes before and after, so that a frozen state loads into a fresh layer.

    Args:
        channels: L.
        most: most maps; 1 where all samples share one.
        levels: levels of the token gain; 1 = without.
    """

    table: Tensor
    recent: Tensor
    seen: Tensor

    def __init__(self, channels: int, most: int, levels: int) -> None:
        super().__init__()
        whole = torch.zeros((), dtype=torch.int64)
        self.register_buffer("table", torch.zeros(most, levels, channels, dtype=torch.uint8))
        self.register_buffer("count", whole.clone())
        self.register_buffer("total", whole.clone())
        rows = RECENT + 1 if most > 1 else 0
        self.register_buffer("recent", torch.zeros(rows, channels))
        self.register_buffer("seen", whole.clone())

    def kept(self) -> int:
        """Return how many maps there are; 0 = not frozen."""
        return self._read("count")

    def fits(self, total: int) -> bool:
        """Tell whether there are maps, and whether they are for this budget."""
        return self.kept() > 0 and self._read("total") == total

    @torch.no_grad()
    def remember(self, wishes: Tensor) -> None:
        """Keep what samples of a training step wish for, [B, L], in place of the oldest.

        Of every process the first 64 samples count, and all processes keep the same.
        """
        rows = len(self.recent) - 1
        if rows < 0:
            return
        share = wishes.new_zeros(_PER_STEP, wishes.shape[1] + 1)  # the last column: is it one?
        share[: len(wishes), :-1] = wishes.detach()[:_PER_STEP]
        share[: len(wishes), -1] = 1.0
        found = all_gather_rows(share)
        valid = found[:, -1].long()
        order = self.seen + valid.cumsum(0) - 1
        spare = torch.full_like(order, rows)  # rows that are no sample go to the last one
        at = torch.where(valid > 0, order % rows, spare)
        self.recent.index_copy_(0, at, found[:, :-1].to(self.recent))
        self.seen.add_(valid.sum())

    def samples(self) -> Tensor:
        """Return the wishes of samples seen lately, of all processes, [N, L].

        Raises:
            ModelError: there are none.
        """
        seen = self._read("seen")
        if not seen:
            raise ModelError(
                "freeze_ has seen no samples, so there are no maps to keep; run the layer on"
                " training data first (in training mode)"
            )
        return self.recent[: min(seen, RECENT)]

    def choose(self, wishes: Tensor, own: Tensor) -> Tensor:
        """Return the rows of `wishes` whose maps to keep, int64 [M]; see `choose_maps`."""
        return choose_maps(wishes, own, len(self.table))

    def keep(self, maps: Tensor, total: int) -> None:
        """Keep maps [M, levels, L] for a budget of `total`; none: the layer is not frozen."""
        with torch.no_grad():
            self.table.zero_()
            self.table[: len(maps)].copy_(maps)
        self._write("count", len(maps))
        self._write("total", total)

    def index(self, wishes: Tensor, level: int, kept: int) -> Tensor:
        """Return which of the first `kept` maps suits each sample best, int64 [G]."""
        return nearest_map(wishes, self.table[:kept, level])
