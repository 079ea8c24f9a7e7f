"""Quantised modules: float, fake-quantised and packed linear layers, and swapping them in."""

from __future__ import annotations

from cmibq.nn.convert import convert_, iter_packed, prepare_
from cmibq.nn.embedding import PackedEmbedding
from cmibq.nn.joined import Joined
from cmibq.nn.linear import QuantLinear
from cmibq.nn.mixin import QuantModule, State
from cmibq.nn.packed import PackedLinear
from cmibq.nn.row import Row

__all__ = [
    "Joined",
    "PackedEmbedding",
    "PackedLinear",
    "QuantLinear",
    "QuantModule",
    "Row",
    "State",
    "convert_",
    "iter_packed",
    "prepare_",
]
