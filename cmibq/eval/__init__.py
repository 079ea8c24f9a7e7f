"""Measuring models: answers, likelihoods, bytes, speed, memory, and what differs."""

from __future__ import annotations

from cmibq.eval.bootstrap import Interval, PairedBootstrap
from cmibq.eval.compare import Comparison
from cmibq.eval.samples import Sample, read_samples, write_samples

__all__ = [
    "Comparison",
    "Interval",
    "PairedBootstrap",
    "Sample",
    "read_samples",
    "write_samples",
]
