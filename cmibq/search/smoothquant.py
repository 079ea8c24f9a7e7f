"""SmoothQuant: move the difficulty of activation outliers into the weights, by formula."""

from __future__ import annotations

import torch

from cmibq.errors import ModelError
from cmibq.ops import absmax
from cmibq.search.base import SEARCHES, GroupCalib, GroupResult, SearchConfig

__all__ = ["search"]

FLOOR = 1e-5


@SEARCHES.register("smoothquant")
@torch.no_grad()
def search(calib: GroupCalib, cfg: SearchConfig) -> GroupResult:
    """Return ``s = max(a**alpha / w**(1 - alpha), 1e-5)`` for groups that follow a norm.

    Args:
        calib: one group; a is ``act_max`` or the largest magnitude of each input channel, w that of
            each column over all weights of the group. A group after a linear layer stays as it is.
        cfg: `alpha` is used; both variants are the published formula.

    Raises:
        ModelError: a maximum is not finite; names the group.

    References:
        Xiao et al., "SmoothQuant", ICML 2023, eq. 4.
    """
    if calib.group.prev_kind != "norm":
        return GroupResult(None, [], None)
    a = absmax(calib.x.contiguous(), axis=1) if calib.act_max is None else calib.act_max.float()
    columns = torch.stack([absmax(w.contiguous(), axis=1) for w in calib.weights]).amax(0)
    s = a.pow(cfg.alpha) / columns.clamp(min=FLOOR).pow(1 - cfg.alpha)
    if not bool(torch.isfinite(s).all()):
        raise ModelError(
            f"group {calib.group.name!r}: a weight of {', '.join(calib.group.linears)} or its "
            "input is NaN or inf; repair the model or its input"
        )
    return GroupResult(s.clamp(min=FLOOR), [], cfg.alpha)
