"""Scale search of one linear layer until the choice is good: int4, groups of 128, 20 candidates.

A choice is good when its float32 loss on tokens that no search sees is within 0.1 % of the best of
the 20. Peers search on the fewest tokens (of 1k, 2k, 4k ... 16k) that give a good choice; cmibq is
given all 16k and finds out by itself how many it needs. Inputs are heavy-tailed: sequences of 64
tokens differ in size (lognormal) and in the profile of their channels.
"""

from __future__ import annotations

import time
from functools import lru_cache, partial
from typing import Any

import numpy as np

from benchmarks.case import Call, Case, Reading
from benchmarks.probes import Probes
from cmibq.arrays import abssum, scaleloss, search_scales
from cmibq.arrays.candidates import candidates

__all__ = ["CASES"]

N = K = 4096
GRID, BITS, GROUP, SEQUENCE = 20, 4, 128, 64
POOL, EVALUATION = 16384, 2048
COUNTS = (1024, 2048, 4096, 8192, 16384)
WITHIN = 1.001
TIMED, ROUNDS = 1, 2
"""Grid points that a slow peer is timed on (its time is extrapolated to all), and how often."""


def tokens(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    channel = np.exp(np.random.default_rng(0).normal(size=K)).astype(np.float32)
    x = rng.standard_normal((count, K), dtype=np.float32)
    for at in range(0, count, SEQUENCE):
        profile = np.exp(0.5 * rng.normal(size=K) + rng.normal()).astype(np.float32)
        x[at : at + SEQUENCE] *= channel * profile
    return x


@lru_cache(maxsize=1)
def operands() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pool of inputs, the weight and the candidate scales."""
    rng = np.random.default_rng(1)
    w = 0.02 * rng.standard_normal((N, K), dtype=np.float32)
    w *= np.exp(0.3 * rng.normal(size=K)).astype(np.float32)
    x = tokens(POOL, 2)
    a, c = (np.asarray(abssum(v, axis=1) / len(v), np.float32) for v in (x, w))
    return x, w, candidates(a, c, GRID)


def losses(x: np.ndarray, s: np.ndarray, loss: str, precision: str = "float32") -> np.ndarray:
    w = operands()[1]
    return scaleloss(x, w, s, bits=BITS, group_size=GROUP, loss=loss, precision=precision)


@lru_cache(maxsize=2)
def regrets(loss: str) -> np.ndarray:
    """Return loss over best loss on the evaluation tokens; float32 where it may matter."""
    x, s = tokens(EVALUATION, 3), operands()[2]
    found = losses(x, s, loss, "bfloat16")
    near = found < 1.02 * found.min()
    found[near] = losses(x, s[near], loss)
    return np.asarray(found / found.min())


@lru_cache(maxsize=2)
def fewest(loss: str) -> int:
    """Return how many tokens a direct search needs for a good choice: every 2nd, 4th sequence."""
    x, _, s = operands()
    near = np.flatnonzero(regrets(loss) < 1.1)  # far ones cannot win on any of these counts
    for count in COUNTS[:-1]:
        found = losses(subset(x, count), s[near], loss, "bfloat16")
        if regrets(loss)[near[found.argmin()]] <= WITHIN:
            return count
    return COUNTS[-1]


def subset(x: np.ndarray, count: int) -> np.ndarray:
    whole = x.reshape(-1, SEQUENCE, K)
    return whole[:: POOL // count].reshape(-1, K)


@lru_cache(maxsize=2)
def judged(loss: str) -> int:
    """Return how many (candidate, token) pairs our race judges; its choice must be good."""
    found = race(loss)()
    regret = regrets(loss)[found.best_index]
    if regret > WITHIN:
        raise AssertionError(f"the race chose a candidate {regret:.4f} times the best")
    return int(found.tokens.sum())


def race(loss: str) -> Any:
    x, w, _ = operands()
    what = {"bits": BITS, "group_size": GROUP, "loss": loss, "n_grid": GRID}
    return partial(search_scales, x, w, effort="race", **what)


def ours(loss: str, threads: int) -> Call:
    judged(loss)
    call: Call = race(loss)
    return call


def pseudo_quantise(w: Any) -> Any:
    """Round groups to their grids, as llm-awq and MBQ do: float32, in torch."""
    rows = w.reshape(-1, GROUP)
    high, low = rows.amax(1, keepdim=True), rows.amin(1, keepdim=True)
    scale = (high - low).clamp_(min=1e-5).div_(2**BITS - 1)
    zero = (-(low / scale).round_()).clamp_(0, 2**BITS - 1)
    codes = (rows / scale).round_().add_(zero).clamp_(0, 2**BITS - 1)
    return codes.sub_(zero).mul_(scale).reshape(w.shape)


def extrapolated(call: Call, factor: float) -> Reading:
    """Return the milliseconds of `factor` calls from one."""

    def read() -> float:
        start = time.perf_counter()
        call()
        return 1e3 * factor * (time.perf_counter() - start)

    call()
    return Reading(read, ROUNDS)


def direct(loss: str, half: bool, threads: int) -> Reading:
    """Search directly with torch: quantise, multiply, compare; a few of the grid points."""
    import torch

    x, w, s = (torch.from_numpy(a) for a in operands())
    x = torch.from_numpy(subset(x.numpy(), fewest(loss)))
    grid = s[4 : 4 + TIMED]
    kind = torch.bfloat16 if half else torch.float32
    part = x.to(kind)

    def call() -> None:
        for one in grid:
            error = pseudo_quantise(w * one).div_(one).sub_(w).to(kind)
            e = (part @ error.T).float()
            float(e.abs_().sum() if loss == "mae" else e.square_().sum())

    return extrapolated(call, GRID / TIMED)


def gram(threads: int) -> Reading:
    """Build X'X once (a twentieth of it is timed with each grid point), then judge tr(E G E')."""
    import torch

    x, w, s = (torch.from_numpy(a) for a in operands())
    x = torch.from_numpy(subset(x.numpy(), fewest("mse")))
    g = x.T @ x

    def call() -> None:
        share = x[: len(x) // GRID]
        share.T @ share
        error = pseudo_quantise(w * s[4]).div_(s[4]).sub_(w)
        float((error @ g).mul_(error).sum())

    return extrapolated(call, GRID)


def flops(loss: str) -> float:
    return 2.0 * N * K * judged(loss)


def limit(loss: str, p: Probes) -> float:
    """The products of the candidates and tokens that the race judged, at the FMA peak."""
    return p.fma(flops(loss))


def case(loss: str) -> Case:
    peers = {
        "torch direct": partial(direct, loss, False),
        "torch direct, bfloat16 products": partial(direct, loss, True),
    }
    if loss == "mse":
        peers["torch Gram"] = gram
    return Case(
        axis=f"scale_search_{loss}",
        name="4096x4096 int4 g128, 20 points, sequences",
        ours=partial(ours, loss),
        peers=peers,
        limit=partial(limit, loss),
        note=f"until a choice within 0.1 % of the best; pool of {POOL} tokens; peers timed on "
        f"{TIMED} of {GRID} grid points (Gram: 1) and extrapolated, at the fewest tokens that do",
        also={"the bf16 peak": lambda p: p.bf16(flops(loss))},
        moved=4.0 * K * (N + POOL),
    )


CASES = [case("mse"), case("mae")]
