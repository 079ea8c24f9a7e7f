"""The groups of an optimiser that trains a CM-IBQ layer: matrices, and what is a logarithm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from cmibq.nn.ib_layer import IBQuantizedLayer

__all__ = ["SCALE_LR", "parameter_groups", "scale_parameters", "split_scales_"]

SCALE_LR = 1e-2
"""Learning rate of ranges and prior, under Adam."""

# Adam divides a gradient by its own size and this. Gradients of matrices are sums of thousands of
# products, and differ by about 1e-9 with the order of the sum: at Adam's usual 1e-8 an element
# whose true gradient is 0 takes a tenth of a full step for that, and two processes part from one.
_EPS = 1e-6


def scale_parameters(layer: IBQuantizedLayer) -> list[nn.Parameter]:
    """Return the parameters of ranges and prior: logarithms, which have far to go.

    Example:
        >>> from cmibq.recipe.cm_ibq import CMIBQConfig
        >>> len(scale_parameters(IBQuantizedLayer(CMIBQConfig(feature_dim=4))))
        5
    """
    parts = [part for part in (layer.quantizer, layer.prior) if part is not None]
    return [p for part in parts for p in part.parameters()]


def parameter_groups(
    layer: IBQuantizedLayer, trained: Iterable[nn.Parameter], lr: float, scale_lr: float = SCALE_LR
) -> list[dict[str, Any]]:
    """Return the groups of an Adam of a layer and what is trained with it.

    The best range of one bit is a fourth of that of eight; matrices never have that far to go.

    Args:
        layer: with a fast group for its ranges and prior.
        trained: all parameters.
        lr: learning rate of the other ones.
        scale_lr: that of ranges and prior.

    Example:
        >>> from cmibq.recipe.cm_ibq import CMIBQConfig
        >>> layer = IBQuantizedLayer(CMIBQConfig(feature_dim=4))
        >>> [g["lr"] for g in parameter_groups(layer, layer.parameters(), 1e-4)]
        [0.0001, 0.01]
    """
    fast = {id(p) for p in scale_parameters(layer)}
    every = list(trained)
    slow, quick = ([p for p in every if (id(p) in fast) == wanted] for wanted in (False, True))
    return [{"params": slow, "lr": lr, "eps": _EPS}, {"params": quick, "lr": scale_lr}]


def split_scales_(
    optimiser: torch.optim.Optimizer, layer: IBQuantizedLayer, scale_lr: float = SCALE_LR
) -> None:
    """Give ranges and prior a group of their own in an optimiser that somebody else made.

    Call it before a scheduler is made. The group has no weight decay, and else the settings of the
    group that it is taken from.

    Args:
        optimiser: that has taken no step yet.
        layer: whose ranges and prior move; those that are not trained stay away.
        scale_lr: their learning rate.

    Example:
        >>> from cmibq.recipe.cm_ibq import CMIBQConfig
        >>> layer = IBQuantizedLayer(CMIBQConfig(feature_dim=4))
        >>> optimiser = torch.optim.AdamW(layer.parameters(), lr=1e-4)
        >>> split_scales_(optimiser, layer)
        >>> [(g["lr"], g["weight_decay"]) for g in optimiser.param_groups]
        [(0.0001, 0.01), (0.01, 0.0)]
    """
    fast = {id(p) for p in scale_parameters(layer)}
    for group in list(optimiser.param_groups):
        quick = [p for p in group["params"] if id(p) in fast]
        more = {"params": quick, "lr": scale_lr, "weight_decay": 0.0}
        if len(quick) == len(group["params"]):
            group.update(more if quick else {})
        elif quick:
            group["params"] = [p for p in group["params"] if id(p) not in fast]
            optimiser.add_param_group({**group, **more})
