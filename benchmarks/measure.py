"""Times one case: ours, peers and probes in alternating blocks of one process."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import probes
from benchmarks.case import Call, Case, Limit, Reading, Scaled
from benchmarks.load import Watch
from benchmarks.stats import Samples

__all__ = ["FULL", "QUICK", "Pace", "Row", "measure"]

Row = dict[str, object]


@dataclass(frozen=True)
class Pace:
    """How long to measure: rounds over all candidates, seconds of a block, seconds of a probe."""

    rounds: int
    block: float
    probe: float


FULL = Pace(rounds=7, block=0.1, probe=0.03)
QUICK = Pace(rounds=3, block=0.04, probe=0.015)


class Candidate:
    """One of the things timed, with its samples in milliseconds (or what a `Reading` returns)."""

    def __init__(self, name: str, made: Call | Scaled | Reading) -> None:
        self.name, self.samples = name, Samples()
        self._made, self._guess = made, 0.0

    def sample(self, block: float) -> None:
        """Take one sample of about `block` seconds; a call longer than that is a sample itself."""
        if isinstance(self._made, Reading):
            if self.samples.total < self._made.rounds:
                watch = Watch()
                value = float(self._made.call())
                self.samples.add(value, watch.clean())
            return
        scaled = self._made if isinstance(self._made, Scaled) else Scaled(self._made, 1.0)
        if self._guess < 0.5:  # first call: caches, thread pools; also after another's block
            self._warm(scaled.call)
        turns = range(max(1, math.ceil(block / max(self._guess, 1e-7))))
        watch, start, call = Watch(), time.perf_counter(), scaled.call
        for _ in turns:
            call()
        elapsed = time.perf_counter() - start
        self.samples.add(1e3 * scaled.factor * elapsed / len(turns), watch.clean())
        self._guess = elapsed / len(turns)

    def enough(self, wanted: int) -> bool:
        """Return whether no further round is needed for this one."""
        return isinstance(self._made, Reading) or self.samples.clean >= wanted

    def _warm(self, call: Call) -> None:
        """Call for five milliseconds, at least once, and guess the time of a call."""
        start, turns = time.perf_counter(), 0
        while turns == 0 or time.perf_counter() - start < 5e-3:
            call()
            turns += 1
        if not self._guess:
            start = time.perf_counter()
            if turns == 1:
                call()
                self._guess = time.perf_counter() - start
            else:
                self._guess = 5e-3 / turns


class Probe:
    """One of the machine's rates, sampled in the rounds of the case that asks for it."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.samples, self._threads = name, Samples(), threads

    def sample(self, seconds: float) -> None:
        """Take one sample."""
        watch = Watch()
        self.samples.add(probes.measure(self.name, self._threads, seconds), watch.clean())


def _built(case: Case, threads: int, only: tuple[str, ...] | None) -> Iterator[Candidate | str]:
    """Yield ours and every peer that runs here, or why it does not."""
    if only is None:
        yield Candidate("ours", case.ours(threads))
    for name, factory in case.peers.items():
        if only is not None and name not in only:
            continue
        try:
            yield Candidate(name, factory(threads))
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0][:120]
            yield f"no {name}: {type(error).__name__} {reason}".strip()


def measure(case: Case, threads: int, pace: Pace, only: tuple[str, ...] | None = None) -> Row:
    """Return the row of a case, and under "probes" the rates measured on the way.

    Args:
        case: what to measure.
        threads: of every candidate.
        pace: how long.
        only: just these peers (the run with the default allocator); `ours` is then absent.
    """
    limits: list[Limit] = [case.limit, *case.also.values()]
    names = dict.fromkeys(n for limit in limits for n in probes.needed(limit))
    built = list(_built(case, threads, only))
    things = [b for b in built if isinstance(b, Candidate)]
    skipped = [b for b in built if isinstance(b, str)]
    rates = [Probe(name, threads) for name in names] if only is None else []
    gc.collect()
    gc.disable()
    wanted = pace.rounds // 2 + 1
    for turn in range(2 * pace.rounds):
        if turn >= pace.rounds and all(t.enough(wanted) for t in things):
            break  # further rounds only while too many samples were disturbed
        for thing in things if turn % 2 == 0 else things[::-1]:
            for probe in rates:
                probe.sample(pace.probe / max(1, len(things)))
            thing.sample(pace.block)
    gc.enable()
    row = _row(case, threads, things, rates, skipped)
    print(f"  {case.name:40s} {threads}t {_text(row)}", file=sys.stderr, flush=True)
    return row


def _row(
    case: Case, threads: int, things: list[Candidate], rates: list[Probe], skipped: list[str]
) -> Row:
    peers = {t.name: _digits(t.samples.median()) for t in things}
    ours = peers.pop("ours", None)
    rate = {p.name: p.samples.median() for p in rates}
    known = probes.Probes(lambda name: rate[name])
    row: Row = {"axis": case.axis, "case": case.name, "threads": threads, "ours": ours}
    row["peers"] = peers
    row["limit"] = _digits(case.limit(known)) if rates or ours is not None else None
    notes = [case.note] if case.note else []
    if ours is not None:
        shares = [(name, limit(known) / ours) for name, limit in case.also.items()]
        notes += [f"{share:.2f} of {name}" for name, share in shares if math.isfinite(share)]
    clean, total = (sum(getattr(t.samples, w) for t in things) for w in ("clean", "total"))
    row["note"] = "; ".join([*notes, *skipped, f"clean {clean}/{total}"])
    row["probes"] = rate
    return row


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def _text(row: Row) -> str:
    peers = row["peers"]
    assert isinstance(peers, dict)
    best = min(peers, key=peers.__getitem__, default="")
    shown = f"ours {row['ours']} limit {row['limit']} best {best} {peers.get(best, '')}"
    return shown + f" | {row['note']}"
