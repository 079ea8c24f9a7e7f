"""Measuring models: answers, likelihoods, bytes, speed, memory, and what differs.

Names that need torch are loaded on first use, so that a report can be made without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cmibq.eval.bootstrap import Interval, PairedBootstrap
from cmibq.eval.compare import Comparison
from cmibq.eval.samples import Sample, read_samples, write_samples

if TYPE_CHECKING:
    from cmibq.eval.loading import load, open_model
    from cmibq.eval.measure import evaluate
    from cmibq.eval.score import score

__all__ = [
    "Comparison",
    "Interval",
    "PairedBootstrap",
    "Sample",
    "evaluate",
    "load",
    "open_model",
    "read_samples",
    "score",
    "write_samples",
]

_HOME = {"evaluate": "measure", "load": "loading", "open_model": "loading", "score": "score"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"cmibq.eval.{_HOME[name]}"), name)
    raise AttributeError(f"module 'cmibq.eval' has no attribute {name!r}")
