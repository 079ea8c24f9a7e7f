"""Batches of a host model by number: the same ones whenever a training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmibq.data import Encoded, collate
from cmibq.train.peers import rank, world

__all__ = ["Batches", "Collected", "warm_cosine"]


class Batches:
    """All samples in a new order in every round; batch n is the same however one gets there.

    Of several processes each has its own part of a common batch, in their order.

    Args:
        samples: encoded conversations.
        processor: of the model.
        size: samples per batch and process.
        count: batches.
        seed: of the orders.
        side: where pads go.

    Example:
        >>> rows = Batches(range(5), None, size=2, count=4)
        >>> [rows.rows(n).tolist() for n in range(4)] == [rows.rows(n).tolist() for n in range(4)]
        True
        >>> sorted(int(n) for n in [*rows.rows(0), *rows.rows(1), rows.rows(2)[0]])
        [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        samples: Sequence[Encoded],
        processor: Any,
        *,
        size: int,
        count: int,
        seed: int = 0,
        side: str = "right",
    ) -> None:
        self.samples, self.processor = samples, processor
        self.size, self.count, self.seed, self.side = size, count, seed, side

    def rows(self, number: int) -> np.ndarray:
        """Return the indices of this process's samples of a batch."""
        at = number * self.size * world() + rank() * self.size + np.arange(self.size)
        total = len(self.samples)
        rounds = {int(r): self._order(int(r)) for r in np.unique(at // total)}
        return np.array([rounds[int(i) // total][int(i) % total] for i in at])

    def _order(self, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 29, number)).permutation(len(self.samples))

    def batch(self, number: int) -> dict[str, Tensor]:
        """Return what the model's forward takes, with labels."""
        chosen = [self.samples[int(i)] for i in self.rows(number)]
        made = collate(chosen, self.processor, side=self.side)
        return made.model_inputs() | {"labels": made.labels}

    def starting_at(self, number: int) -> Iterator[dict[str, Tensor]]:
        """Yield the batches from one on."""
        return map(self.batch, range(number, self.count))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.starting_at(0)

    def __len__(self) -> int:
        return self.count


class Collected:
    """What stage one takes: the features behind the projector of a frozen model.

    Args:
        batches: of the model.
        model: with a layer attached.
        collect: (model, batch) -> features by number of tokens; of these the largest part is taken.
        device: of the model.
    """

    def __init__(
        self,
        batches: Batches,
        model: nn.Module,
        collect: Callable[[nn.Module, dict[str, Any]], list[dict[str, Tensor]]],
        device: torch.device,
    ) -> None:
        self.batches, self.model, self.collect, self.device = batches, model, collect, device

    def one(self, number: int) -> dict[str, Tensor]:
        """Return the features of a batch."""
        batch = {k: v.to(self.device) for k, v in self.batches.batch(number).items()}
        parts = self.collect(self.model, batch)
        return max(parts, key=lambda part: part["features"].numel())

    def starting_at(self, number: int) -> Iterator[dict[str, Tensor]]:
        """Yield the features from one batch on."""
        return map(self.one, range(number, len(self.batches)))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.starting_at(0)

    def __len__(self) -> int:
        return len(self.batches)


def warm_cosine(steps: int, share: float) -> Callable[[int], float]:
    """Return the factor of a learning rate by step: up over a share of them, down like a cosine.

    Example:
        >>> factor = warm_cosine(10, 0.2)
        >>> [round(factor(step), 2) for step in (0, 1, 2, 10)]
        [0.5, 1.0, 1.0, 0.0]
    """
    first = math.ceil(share * steps)

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / first
        done = (step - first) / max(steps - first, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return factor
