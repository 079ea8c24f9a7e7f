"""AWQ: search the scales that keep the output of a group, every token counting alike."""

from __future__ import annotations

from cmibq.search.base import SEARCHES, GroupCalib, GroupResult, SearchConfig, TokenWeights
from cmibq.search.loop import search_group

__all__ = ["search"]


@SEARCHES.register("awq")
def search(calib: GroupCalib, cfg: SearchConfig) -> GroupResult:
    """Return the best candidate scales; the token weights of `calib` are not used.

    Args:
        calib: one group.
        cfg: a `loss_mode` of None is ``"mse"``, as in the paper. The default variant differs from
            the published code in its candidates (`cmibq.arrays.candidates`), in grids that contain
            0 with float16 scales, as packages store them, and in that callers leave pads out.

    Raises:
        ModelError: weights or inputs are not finite, a group size does not divide.

    References:
        Lin et al., "AWQ", MLSys 2024, section 3.2, eq. 4-5.
    """
    token = TokenWeights.uniform(len(calib.x)).weight
    return search_group(calib, cfg, token, cfg.loss_mode or "mse")
