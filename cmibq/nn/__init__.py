"""Quantised modules: float, fake-quantised and packed linear layers, and swapping them in."""

from __future__ import annotations

from cmibq.nn.convert import convert_, iter_packed, prepare_
from cmibq.nn.linear import QuantLinear
from cmibq.nn.mixin import QuantModule, State
from cmibq.nn.packed import PackedLinear

__all__ = [
    "PackedLinear",
    "QuantLinear",
    "QuantModule",
    "State",
    "convert_",
    "iter_packed",
    "prepare_",
]
