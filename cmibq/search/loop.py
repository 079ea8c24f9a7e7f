"""The search that AWQ and MBQ share: try every candidate scale of a group, keep the best."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from cmibq.arrays.candidates import argbest, candidates, ratios
from cmibq.errors import ConfigError, ModelError
from cmibq.ops import abssum, scaleloss
from cmibq.search.base import BlockRunner, GroupCalib, GroupResult, SearchConfig
from cmibq.search.candidate import compare, run_candidate, weight_spec
from cmibq.search.racing import can_race, race_group

__all__ = ["candidate_scales", "group_losses", "search_group"]

POWER = {"mae": 1, "mse": 2}


def candidate_scales(calib: GroupCalib, cfg: SearchConfig) -> Tensor:
    """Return float32 [n_grid, K] from mean magnitudes of input channels and weight columns."""
    if cfg.variant == "reference":
        return _published_scales(calib.x, cfg.n_grid)
    parts = (abssum(w.contiguous(), axis=1) for w in calib.weights)
    columns = torch.stack(list(parts)).sum(0) / max(sum(map(len, calib.weights)), 1)
    channels = abssum(calib.x.contiguous(), axis=1) / max(len(calib.x), 1)
    if calib.group.values is not None:
        columns, channels = (calib.group.values.tie(v) for v in (columns, channels))
    a, c = (v.float().numpy() for v in (channels, columns))
    return torch.from_numpy(candidates(a, c, cfg.n_grid, cfg.variant))


def _published_scales(x: Tensor, n_grid: int) -> Tensor:
    """Return the published candidates by the published operations, the same to the last bit.

    `cmibq.arrays.candidates` has the formula; a last bit decides where a rounding is a tie.
    """
    a = x.abs().mean(0)
    if not bool(torch.isfinite(a).all()):
        raise ModelError("mean magnitudes are not finite; look for huge values in the inputs")
    raw = [a.pow(r).clamp(min=1e-4) for r in ratios(n_grid, "reference")]
    return torch.stack([s / (s.max() * s.min()).sqrt() for s in raw])


def _layer_losses(
    calib: GroupCalib, cfg: SearchConfig, token: Tensor, grid: Tensor, power: int
) -> Tensor:
    """Return the losses of layers whose own output is compared: one kernel call per layer."""
    spec, total = weight_spec(cfg), torch.zeros(len(grid), dtype=torch.float64)
    for name, w in zip(calib.group.linears, calib.weights, strict=True):
        try:
            _, size = spec.granularity.matrix(w.shape)
        except ConfigError as error:
            raise ModelError(f"{name}: {error}") from error
        total += scaleloss(
            calib.x.contiguous(), w.contiguous(), grid, bits=cfg.bits, mode=int(spec.range_mode),
            group_size=size, act_bits=cfg.act_bits, power=power, token_weight=token,
        )  # fmt: skip
    return total / max(sum(map(len, calib.weights)), 1)


def _block_losses(
    calib: GroupCalib, run: BlockRunner, cfg: SearchConfig, token: Tensor, grid: Tensor, power: int
) -> Tensor:
    """Return the losses of a group whose inspected module is run for every candidate."""
    clean = calib.clean or run
    target = [calib.hold(t) for t in clean(calib.weights, input_scale=None, act_bits=None)]
    if sum(map(len, target)) != len(token):
        raise ModelError(
            f"group {calib.group.name!r}: {calib.group.inspect} gave {sum(map(len, target))} "
            f"tokens for {len(token)} token weights"
        )
    losses = []
    for s in grid:
        at, loss = 0, 0.0
        for one, out in zip(target, run_candidate(run, calib, cfg, s), strict=True):
            loss += compare(one, out, token[at : at + len(one)], power)
            at += len(one)
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64)


@torch.no_grad()
def group_losses(
    calib: GroupCalib, cfg: SearchConfig, token: Tensor, grid: Tensor, loss: str
) -> Tensor:
    """Return the loss of every scale vector of `grid` [S, K] for one group, float64 [S].

    Args:
        calib: the group; a `block` of None compares the layers' own outputs.
        cfg: what is quantised.
        token: float64 [T], weight of each token.
        grid: float32 [S, K], finite and > 0.
        loss: ``"mae"`` or ``"mse"``.

    Raises:
        ModelError: a weight is not finite, a group size does not divide, or the block yields
            another number of tokens; names the layer or group.
    """
    if calib.block is None:
        return _layer_losses(calib, cfg, token, grid, POWER[loss])
    return _block_losses(calib, calib.block, cfg, token, grid, POWER[loss])


@torch.no_grad()
def search_group(calib: GroupCalib, cfg: SearchConfig, token: Tensor, loss: str) -> GroupResult:
    """Return the candidate with the least loss; the first is no scaling, so never worse than RTN.

    Args:
        calib: the group.
        cfg: what is quantised, how many candidates, which variant.
        token: float64 [T], weight of each token.
        loss: ``"mae"`` or ``"mse"``.

    Returns:
        The result; after a race its losses are estimates for the candidates that were dropped.

    Raises:
        ModelError: as `group_losses`, or no loss is finite; names the group.
    """
    _check_finite(calib)
    grid = candidate_scales(calib, cfg)
    try:
        if cfg.effort == "race" and can_race(calib):
            losses, best = race_group(calib, cfg, token, grid, POWER[loss])
        else:
            losses = group_losses(calib, cfg, token, grid, loss).tolist()
            best = argbest(np.asarray(losses))
    except ModelError as error:
        raise ModelError(f"group {calib.group.name!r}: {error}") from error
    ratio = ratios(cfg.n_grid, cfg.variant)[best]
    return GroupResult(grid[best].clone(), losses, ratio)


def _check_finite(calib: GroupCalib) -> None:
    """Refuse NaN and inf by name: they would only show as a NaN loss later."""
    named: Iterable[tuple[str, Tensor]] = (
        (f"input of {calib.group.name}", calib.x),
        *((f"weight of {n}", w) for n, w in zip(calib.group.linears, calib.weights, strict=True)),
    )
    for name, t in named:
        if t.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(t))).all()):
            raise ModelError(f"the {name} holds NaN or inf; repair the model or its input")
