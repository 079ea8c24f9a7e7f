"""Comparing models on the same questions: accuracy, flips, excess loss, share of a gap closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cmibq.errors import ConfigError, DataError, nearest
from cmibq.eval.bootstrap import Array, Interval, PairedBootstrap
from cmibq.eval.samples import Sample

__all__ = ["MEASURES", "Comparison"]

MEASURES = ("accuracy", "logprob", "flips")


class Comparison:
    """Several models on the same questions, with uncertainty paired between them.

    Questions are matched by id. Standard errors come from a bootstrap over scans, the same draw for
    every model; see `cmibq.eval.bootstrap`.

    Args:
        runs: model name -> its answers; every model must have answered the same questions.
        baseline: name of the float model, for `flips` and `excess_loss`; None leaves them out.
        resamples: number of bootstrap draws.
        seed: seed of the draws.

    Raises:
        ConfigError: no runs, or `baseline` is not one of them.
        DataError: the runs have different questions.

    Example:
        >>> def answers(*right: bool) -> list[Sample]:
        ...     return [
        ...         Sample(str(i), "", (i,), "", "yes", "yes" if r else "no", r, -0.1 if r else -2)
        ...         for i, r in enumerate(right)
        ...     ]
        >>> both = {"float": answers(True, True, True), "w2": answers(True, False, True)}
        >>> result = Comparison(both, baseline="float")
        >>> round(result.difference("w2", "float").value, 3), round(result.flips("w2").value, 3)
        (-0.333, 0.333)
    """

    def __init__(
        self,
        runs: Mapping[str, Sequence[Sample]],
        *,
        baseline: str | None = None,
        resamples: int = 2000,
        seed: int = 0,
    ) -> None:
        if not runs:
            raise ConfigError("runs is empty; pass at least one model")
        if baseline is not None and baseline not in runs:
            raise ConfigError(f"baseline is {baseline!r}, not a run; {nearest(baseline, runs)}")
        self.names = tuple(runs)
        self.baseline = baseline
        order = list(next(iter(runs.values())))
        tables = [_aligned(order, name, samples) for name, samples in runs.items()]
        base = tables[self.names.index(baseline)] if baseline else None
        self.n_questions = len(order)
        columns = [column for table in tables for column in _columns(table, base)]
        clusters = [_clusters(sample) for sample in order]
        self._boot = PairedBootstrap(
            np.stack(columns, axis=1), clusters, resamples=resamples, seed=seed
        )

    def _column(self, name: str, measure: str) -> int:
        if name not in self.names:
            raise ConfigError(f"unknown run {name!r}; {nearest(name, self.names)}")
        if measure not in MEASURES:
            raise ConfigError(f"measure is {measure!r}; allowed are {', '.join(MEASURES)}")
        return self.names.index(name) * len(MEASURES) + MEASURES.index(measure)

    def mean(self, name: str, measure: str = "accuracy") -> Interval:
        """Return the mean of a measure over all questions: a share, or nats per question."""
        at = self._column(name, measure)
        return self._boot.interval(lambda m: m[..., at])

    def difference(self, name: str, other: str, measure: str = "accuracy") -> Interval:
        """Return mean(name) - mean(other), paired."""
        at, from_ = self._column(name, measure), self._column(other, measure)
        return self._boot.interval(lambda m: np.asarray(m[..., at] - m[..., from_]))

    def _base(self) -> str:
        if self.baseline is None:
            raise ConfigError("baseline is None; name the float model when comparing")
        return self.baseline

    def flips(self, name: str) -> Interval:
        """Return the share of questions answered otherwise than by the baseline."""
        self._base()
        return self.mean(name, "flips")

    def excess_loss(self, name: str) -> Interval:
        """Return the negative log-likelihood of right answers above the baseline, nats each."""
        return self.difference(self._base(), name, "logprob")

    def gap_closed(self, name: str, worst: str, best: str, measure: str = "accuracy") -> Interval:
        """Return (mean(name) - mean(worst)) / (mean(best) - mean(worst)).

        The interval is wide or meaningless where the gap itself is not well away from zero.
        """
        at, low, high = (self._column(n, measure) for n in (name, worst, best))

        def share(m: Array) -> Array:
            return np.asarray((m[..., at] - m[..., low]) / (m[..., high] - m[..., low]))

        return self._boot.interval(share)


def _aligned(order: Sequence[Sample], name: str, samples: Sequence[Sample]) -> list[Sample]:
    by_id = {sample.id: sample for sample in samples}
    if len(by_id) != len(samples):
        raise DataError(f"run {name!r} has two answers with one id; ids must differ")
    if by_id.keys() != {sample.id for sample in order} or len(samples) != len(order):
        odd = sorted(by_id.keys() ^ {sample.id for sample in order})
        raise DataError(
            f"run {name!r} answered other questions than the first run (such as {odd[:1]}); "
            "measure both on the same data"
        )
    return [by_id[sample.id] for sample in order]


def _columns(samples: Sequence[Sample], base: Sequence[Sample] | None) -> list[Array]:
    correct = np.array([s.credit for s in samples], np.float64)
    logprob = np.array([s.logprob for s in samples], np.float64)
    pairs = zip(samples, base if base is not None else samples, strict=True)
    flips = np.array([_answered(s) != _answered(b) for s, b in pairs], np.float64)
    return [correct, logprob, flips]


def _answered(sample: Sample) -> tuple[float, str]:
    """Return what was answered, and what that counts."""
    return sample.credit, sample.pred if sample.score is None else sample.generated


def _clusters(sample: Sample) -> tuple[object, ...]:
    """Return what a question shares with others: its scans, else its image, else nothing."""
    if sample.scans:
        return sample.scans
    return (("image", sample.image),) if sample.image else (("id", sample.id),)
