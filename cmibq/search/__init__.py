"""Search of channel scales: one function per method, by name in `SEARCHES`."""

from __future__ import annotations

from cmibq.search import awq, mbq, rtn, smoothquant
from cmibq.search.base import (
    SEARCHES,
    BlockRunner,
    GroupCalib,
    GroupResult,
    LinearGroup,
    SearchConfig,
    TokenWeights,
    apply_scales_,
)
from cmibq.search.candidate import weight_spec

__all__ = [
    "SEARCHES",
    "BlockRunner",
    "GroupCalib",
    "GroupResult",
    "LinearGroup",
    "SearchConfig",
    "TokenWeights",
    "apply_scales_",
    "awq",
    "mbq",
    "rtn",
    "smoothquant",
    "weight_spec",
]
