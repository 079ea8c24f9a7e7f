"""MBQ: AWQ's search with image and answer tokens weighted by how much the model depends on them."""

from __future__ import annotations

from cmibq.search.base import SEARCHES, GroupCalib, GroupResult, SearchConfig
from cmibq.search.loop import search_group

__all__ = ["search"]


@SEARCHES.register("mbq")
def search(calib: GroupCalib, cfg: SearchConfig) -> GroupResult:
    """Return the best candidate scales under the token weights of `calib`.

    Args:
        calib: one group; `tokens` from `TokenWeights.modality` (reweighted) or
            `TokenWeights.uniform`. Build them for the loss that is used.
        cfg: a `loss_mode` of None is ``"mae"``, as in the paper. The default variant differs from
            the published code as AWQ's does.

    Raises:
        ModelError: weights or inputs are not finite, a group size does not divide.

    References:
        Li et al., "MBQ", CVPR 2025, section 4, eq. 6-8.
    """
    return search_group(calib, cfg, calib.tokens.weight, cfg.loss_mode or "mae")
