"""Search of channel scales: one function per method, by name in `SEARCHES`."""

from __future__ import annotations

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

__all__ = [
    "SEARCHES",
    "BlockRunner",
    "GroupCalib",
    "GroupResult",
    "LinearGroup",
    "SearchConfig",
    "TokenWeights",
    "apply_scales_",
]
