"""Processes that share one run: started by torchrun, they talk through gloo.

Every sum over samples is made by one process from parts that the others hand over, in the order of
the samples, so that results are those of one process bit for bit. Only the first process writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import Tensor

from cmibq.errors import CmibqError, ConfigError
from cmibq.ops.peers import leave_at_exit

__all__ = ["ALONE", "PeerError", "Team", "join"]

T = TypeVar("T")
_TIMEOUT = "CMIBQ_PEER_TIMEOUT"
_TIMEOUT_SECONDS = 1800


class PeerError(CmibqError):
    """Another process of the run has ended or does not answer."""


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Say what the failure of a transfer means."""
    try:
        yield
    except RuntimeError as error:
        raise PeerError(
            "another process of this run has ended or does not answer; look for its message, then"
            f" start the same command again: finished blocks are kept ({_short(error)})"
        ) from error


@dataclass(frozen=True)
class Team:
    """The processes of a run; one of its own is the rule.

    Args:
        rank: number of this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def has(self, batch: int) -> bool:
        """Whether a batch is this process's to run."""
        return batch % self.size == self.rank

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in their order; values are pickled."""
        if self.size == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.size
        with _told():
            distributed.all_gather_object(found, value)
        return found

    def first(self, value: T) -> T:
        """Return the value of the first process."""
        return self.gather(value if self.leads else None)[0]  # type: ignore[return-value]

    def woven(self, own: Sequence[T]) -> list[T]:
        """Return what all processes have of every batch they run, in the order of batches."""
        parts = self.gather(list(own))
        total = sum(map(len, parts))
        return [parts[i % self.size][i // self.size] for i in range(total)]

    def hand_over(self, rows: Tensor, batch: int, owner: int) -> None:
        """Bring the rows of a batch from whoever ran it to their owner.

        Args:
            rows: contiguous; filled where this process is the owner, read where it ran the batch.
            batch: number of the batch.
            owner: process that wants them.
        """
        holder = batch % self.size
        if holder == owner or self.rank not in (holder, owner):
            return
        from torch import distributed

        with _told():
            if self.rank == holder:
                distributed.send(rows, owner)
            else:
                distributed.recv(rows, holder)

    def deal(self, costs: Sequence[float]) -> list[int]:
        """Return which process does each of some tasks: the dearest first, to whoever has least.

        Example:
            >>> Team(0, 2).deal([1.0, 5.0, 3.0])
            [1, 0, 1]
        """
        load = [0.0] * self.size
        owner = [0] * len(costs)
        for task in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
            owner[task] = min(range(self.size), key=lambda rank: (load[rank], rank))
            load[owner[task]] += costs[task]
        return owner


ALONE = Team()


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdigit():
        raise ConfigError(
            f"{name} is {text!r} in the environment; it must be a number, as torchrun sets it"
        )
    return int(text)


def join() -> Team:
    """Join the processes that torchrun started, once per process; `ALONE` without it.

    Raises:
        ConfigError: the variables of torchrun are incomplete.
        PeerError: the others do not come.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    team = Team(_number("RANK"), _number("WORLD_SIZE"))
    from torch import distributed

    if not distributed.is_initialized():
        seconds = _number(_TIMEOUT) if _TIMEOUT in os.environ else _TIMEOUT_SECONDS
        with _told():
            distributed.init_process_group("gloo", timeout=timedelta(seconds=seconds))
        leave_at_exit()
    return team
