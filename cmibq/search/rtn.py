"""Round to nearest: no scaling at all, the baseline of every search."""

from __future__ import annotations

from cmibq.search.base import SEARCHES, GroupCalib, GroupResult, SearchConfig

__all__ = ["search"]


@SEARCHES.register("rtn")
def search(calib: GroupCalib, cfg: SearchConfig) -> GroupResult:
    """Return no scales.

    Args:
        calib: one group; not looked at.
        cfg: not looked at.
    """
    return GroupResult(None, [], None)
