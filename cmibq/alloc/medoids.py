"""Few bit maps that serve many samples."""

from __future__ import annotations

import torch
from torch import Tensor

from cmibq.alloc.whole import expected_distortion

__all__ = ["choose_maps", "nearest_map"]

_ROUNDS = 10


def nearest_map(wishes: Tensor, maps: Tensor) -> Tensor:
    """Return the map of least expected distortion for every row, int64 [G]; the first of equals.

    Args:
        wishes: [G, L].
        maps: [M, L], M >= 1.
    """
    return expected_distortion(wishes, maps).argmin(1)


def choose_maps(wishes: Tensor, own: Tensor, most: int) -> Tensor:
    """Return the samples whose maps serve all best, at most `most`, by k-medoids.

    The cost of a map for a sample is its expected distortion over that of the sample's own map.
    Medoids are added greedily, then every group takes the best of its own until nothing changes.

    Args:
        wishes: [N, L], what samples wish for.
        own: uint8 [N, L], the best map of each.
        most: >= 1.

    Returns:
        int64 [M], rows of `own`, those that serve most samples first. The maps they have do not
        depend on the order of the samples.

    References:
        Kaufman and Rousseeuw, "Finding Groups in Data", 1990, chapter 2 (BUILD, then alternation).

    Example:
        >>> own = torch.tensor([[1, 3], [3, 1], [1, 3]], dtype=torch.uint8)
        >>> choose_maps(own.float(), own, 256)
        tensor([0, 1])
    """
    maps, group, count = own.unique(dim=0, return_inverse=True, return_counts=True)
    rows = torch.arange(len(own), device=own.device)
    first = torch.full_like(count, len(own)).scatter_reduce_(0, group, rows, "amin")
    if len(maps) <= most:
        return first[count.argsort(descending=True, stable=True)]
    table = expected_distortion(wishes, maps)
    cost = table / table.gather(1, group[:, None])
    merged = cost.new_zeros(len(maps), len(maps)).index_add_(0, group, cost)  # samples alike
    chosen = _alternate(merged, _build(merged, most))
    served = torch.bincount(merged[:, chosen].argmin(1), weights=count, minlength=len(chosen))
    return first[chosen[served.argsort(descending=True, stable=True)]]


def _build(cost: Tensor, most: int) -> Tensor:
    """Return medoids added one by one, each the one that lowers the total cost most."""
    chosen = [int(cost.sum(0).argmin())]
    best = cost[:, chosen[0]]
    for _ in range(1, most):
        totals = torch.minimum(best[:, None], cost).sum(0)
        totals[chosen] = torch.inf
        chosen.append(int(totals.argmin()))
        best = torch.minimum(best, cost[:, chosen[-1]])
    return torch.tensor(chosen, device=cost.device)


def _alternate(cost: Tensor, chosen: Tensor) -> Tensor:
    """Return medoids after every group has taken the best of its own members."""
    for _ in range(_ROUNDS):
        group = cost[:, chosen].argmin(1)
        new = chosen.clone()
        for k in range(len(chosen)):
            members = (group == k).nonzero()[:, 0]
            if len(members):
                new[k] = members[cost[members][:, members].sum(0).argmin()]
        if torch.equal(new, chosen):
            break
        chosen = new
    return chosen
