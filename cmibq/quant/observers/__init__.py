"""Observers: from a tensor to its grids. A new one is a file here and a line below."""

from __future__ import annotations

from cmibq.quant.observers import histogram, kl, minmax, mse, percentile
from cmibq.quant.observers.base import OBSERVERS, Observer

__all__ = ["OBSERVERS", "Observer", "histogram", "kl", "minmax", "mse", "percentile"]
