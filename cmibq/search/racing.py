"""Racing the candidates of a group: only those that may still win see more tokens."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmibq import arrays
from cmibq.arrays.candidates import argbest
from cmibq.arrays.race import Race, drawn_blocks, race
from cmibq.arrays.search import FAST_BFLOAT16, TOKENS_OF_A_BLOCK, race_layers
from cmibq.errors import ConfigError, ModelError
from cmibq.ops import abssum
from cmibq.quant import RangeMode
from cmibq.runtime import kernels
from cmibq.search.attention import CausalAttention
from cmibq.search.base import BlockRunner, GroupCalib, SearchConfig
from cmibq.search.candidate import candidate, compare, run_candidate, weight_spec

__all__ = ["can_race", "race_group"]

FIRST_BATCHES = 8
FIRST_BLOCKS = 16
TOLERANCE = 1e-3
"""Of the loss; candidates closer than this are not told apart by running more tokens."""
CONFIRMED_BLOCKS = 32
"""Blocks on which finalists of a race in bfloat16 are compared in float32."""
BLOCKS_AT_ONCE = 128
"""Blocks of tokens that a module is run on at a time, which bounds what it computes in between."""
LOSSES = {1: "mae", 2: "mse"}


def can_race(calib: GroupCalib) -> bool:
    """Tell whether a group can be raced: on the CPU, and batches of known lengths if it is run."""
    tensors = (calib.x, *calib.weights)
    on_cpu = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return on_cpu if calib.block is None else bool(calib.rows or calib.lengths is not None)


def race_group(
    calib: GroupCalib, cfg: SearchConfig, token: Tensor, grid: Tensor, power: int
) -> tuple[list[float], int]:
    """Return the losses of the candidates (estimates for those dropped) and the best one's index.

    Args:
        calib: the group.
        cfg: what is quantised.
        token: float64 [T], weight of each token.
        grid: float32 [S, K], candidate scales.
        power: 1 (mae) or 2 (mse).

    Raises:
        ModelError: a group size does not divide, no candidate has a finite loss, or the batches do
            not add up to the tokens.
    """
    if calib.block is None:
        found = _layers(calib, cfg, token, grid, power)
    elif calib.rows is not None:
        found = _tokens(calib, cfg, token, grid, power)
    else:
        found = _batches(calib, calib.block, cfg, token, grid, power)
    if not np.isfinite(found.losses[found.best]):
        raise ModelError(
            "no candidate has a finite loss; look for NaN, inf or huge values in weights and inputs"
        )
    return found.losses.tolist(), found.best


def _layers(calib: GroupCalib, cfg: SearchConfig, token: Tensor, grid: Tensor, power: int) -> Race:
    spec, mode = weight_spec(cfg), weight_spec(cfg).range_mode
    for name, w in zip(calib.group.linears, calib.weights, strict=True):
        try:
            _, size = spec.granularity.matrix(w.shape)
        except ConfigError as error:
            raise ModelError(f"{name}: {error}") from error
    judge = functools.partial(
        arrays.scaleloss, bits=cfg.bits, group_size=size, act_bits=cfg.act_bits,
        symmetric=bool(mode & RangeMode.SYMMETRIC),
        zero_in_range=bool(mode & RangeMode.ZERO_IN_RANGE),
        half_scale=bool(mode & RangeMode.HALF_SCALE), loss=LOSSES[power],
    )  # fmt: skip
    weights = [w.contiguous().numpy() for w in calib.weights]
    x = calib.x.contiguous().numpy()
    found = race_layers(judge, x, weights, grid.numpy(), token.numpy(), power)
    rows = max(sum(map(len, calib.weights)), 1)
    return Race(found.best, found.losses / rows, found.blocks, found.finalists, found.separated)


def _batches(
    calib: GroupCalib, run: BlockRunner, cfg: SearchConfig, token: Tensor, grid: Tensor, power: int
) -> Race:
    lengths = np.asarray(calib.lengths, np.intp)
    if lengths.sum() != len(token):
        raise ModelError(f"batches of {lengths.sum()} tokens for {len(token)} token weights")
    edges = np.concatenate([[0], np.cumsum(lengths)])
    mass = (token * calib.x.abs().sum(1, dtype=torch.float64) ** power).numpy()
    size = np.array([mass[a:b].sum() for a, b in itertools.pairwise(edges)])
    used = np.flatnonzero(size > 0)
    if not len(used):
        used, size = np.arange(len(size)), np.ones(len(size))
    targets: dict[int, Tensor] = {}

    def judge(which: NDArray[np.intp], blocks: NDArray[np.intp]) -> NDArray[np.float64]:
        batches = [int(b) for b in used[blocks]]
        clean = calib.clean or run
        outs = clean(calib.weights, input_scale=None, act_bits=None, batches=batches)
        targets.update((b, calib.hold(t)) for b, t in zip(batches, outs, strict=True))
        out = np.empty((len(which), len(batches)))
        for i, c in enumerate(which):
            results = run_candidate(run, calib, cfg, grid[c], batches)
            for k, (b, result) in enumerate(zip(batches, results, strict=True)):
                weight = token[edges[b] : edges[b + 1]]
                out[i, k] = compare(targets[b], result, weight, power)
        return out

    return race(judge, len(grid), size[used], first=FIRST_BATCHES)


def _tokens(calib: GroupCalib, cfg: SearchConfig, token: Tensor, grid: Tensor, power: int) -> Race:
    """Race over blocks of successive tokens."""
    starts = np.arange(0, len(token), TOKENS_OF_A_BLOCK)
    mass = token * abssum(calib.x.contiguous(), axis=0).double() ** power
    size = np.add.reduceat(mass.numpy(), starts)
    used = np.flatnonzero(size > 0)
    if not len(used):
        used, size = np.arange(len(starts)), np.ones(len(starts))
    half = kernels().isa in FAST_BFLOAT16
    judge = _Judge(calib, cfg, token, grid, power, starts[used], torch.float32)
    screen = replace(judge, dtype=torch.bfloat16) if half else judge
    # Keys and values of whole sequences cost the same for few tokens as for more of them.
    first = FIRST_BLOCKS * (2 if isinstance(calib.rows, CausalAttention) else 1)
    found = race(screen, len(grid), size[used], first=first, tolerance=TOLERANCE)
    return _confirmed(judge, found, size[used]) if half and len(found.finalists) > 1 else found


def _confirmed(judge: _Judge, found: Race, size: NDArray[np.float64]) -> Race:
    """Compare the candidates that bfloat16 did not tell apart once more in float32."""
    blocks = np.unique(drawn_blocks(size, CONFIRMED_BLOCKS))
    exact = judge(found.finalists, blocks).sum(1) * (size.sum() / size[blocks].sum())
    losses = found.losses.copy()
    losses[found.finalists] = exact
    return replace(found, best=int(found.finalists[argbest(exact)]), losses=losses)


@dataclass(frozen=True, eq=False)
class _Judge:
    """Losses of candidates on blocks of successive tokens, in the precision of `dtype`."""

    calib: GroupCalib
    cfg: SearchConfig
    token: Tensor
    grid: Tensor
    power: int
    starts: NDArray[np.intp]
    dtype: torch.dtype

    def __call__(self, which: NDArray[np.intp], blocks: NDArray[np.intp]) -> NDArray[np.float64]:
        calib, run, token = self.calib, self.calib.rows, self.token
        assert run is not None
        clean = calib.clean_rows or run
        parts = [_rows(self.starts[b], len(token)) for b in _chunks(blocks)]
        weights = [w.to(self.dtype) for w in calib.weights]
        targets = [clean(weights, p, input_scale=None, act_bits=None) for p in parts]
        out = np.empty((len(which), len(blocks)))
        for i, c in enumerate(which):
            made, seen = candidate(calib, self.cfg, self.grid[c])
            made = [w.to(self.dtype) for w in made]
            pairs = zip(parts, targets, strict=True)
            each = [_block_sums(t - run(made, p, **seen), token[p], self.power) for p, t in pairs]
            out[i] = np.concatenate(each)
        return out


def _chunks(blocks: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return np.split(blocks, range(BLOCKS_AT_ONCE, len(blocks), BLOCKS_AT_ONCE))


def _rows(starts: NDArray[np.intp], tokens: int) -> Tensor:
    """Return the positions of the tokens of some blocks."""
    rows = starts[:, None] + np.arange(TOKENS_OF_A_BLOCK)
    return torch.from_numpy(rows[rows < tokens])


def _block_sums(error: Tensor, token: Tensor, power: int) -> NDArray[np.float64]:
    """Return sum_t token_t mean_c |error|**power of every block; only the last may be short."""
    each = error.abs_().pow_(power).mean(-1, dtype=torch.float64) * token
    edges = np.arange(0, len(token), TOKENS_OF_A_BLOCK)
    return np.asarray(np.add.reduceat(each.numpy(), edges), np.float64)
