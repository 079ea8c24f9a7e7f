"""What one measured case is: ours, its peers, and the time that the machine itself would need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.probes import Probes

__all__ = ["Call", "Case", "Factory", "Limit", "Reading", "Scaled"]

Call = Callable[[], object]
"""One run of the work, timed from outside."""

Limit = Callable[[Probes], float]
"""The least possible milliseconds (or bytes), from the rates of this machine at this moment."""


@dataclass(frozen=True)
class Scaled:
    """A call that does more or less than the case: its time counts `factor` times.

    A run over a ring of R matrices has factor 1/R, 3 of 20 grid points have factor 20/3.
    """

    call: Call
    factor: float


@dataclass(frozen=True)
class Reading:
    """A call that returns the figure itself (milliseconds, or bytes for `fusion_memory`).

    For work that cannot be timed from outside: memory of a fresh process, time until a criterion.
    """

    call: Callable[[], float]
    rounds: int = 3


Factory = Callable[[int], Call | Scaled | Reading]
"""Thread count -> what to run. Builds every operand; the child process has set torch, OpenMP and
OpenBLAS to that thread count already."""


@dataclass(frozen=True)
class Case:
    """One row of the table per thread count.

    Attributes:
        axis: as in the table of bars.
        name: of the case; `benchmarks/bars.py` finds its bar by it.
        ours: makes our call.
        peers: name -> factory; a peer that cannot run is skipped, and the row says why.
        limit: formula over the probes, in milliseconds (bytes for `fusion_memory`).
        note: what the reader must know: settings, what the limit counts, what was extrapolated.
        also: further limits; the note then tells the fraction of each.
        flops: multiplications and additions of a call, for the roofline picture; 0 with `moved`
            given: what the limit takes at the float32 peak, where only the run tells.
        moved: bytes that a call must move, for the roofline picture.
        default_malloc: peers that are measured once more as installed, without recycled memory.
        threads: thread counts.
        quick: also part of `make bench-quick`.
    """

    axis: str
    name: str
    ours: Factory
    peers: Mapping[str, Factory]
    limit: Limit
    note: str = ""
    also: Mapping[str, Limit] = field(default_factory=dict)
    flops: float = 0
    moved: float = 0
    default_malloc: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1, 2)
    quick: bool = False
