"""Cases of gaussian, by way of the bottleneck with widths of 8 bits."""

from __future__ import annotations

import numpy as np

from cmibq.noise import inverse_normal
from cmibq.runtime import kernels
from tests.kernels.cases.base import Arrays, Case


def _make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    made = {n: rng.normal(size=(rows, cols)).astype(np.float32) for n in ("mu", "logvar", "gy")}
    made["logvar"][:, ::7] *= 8
    made |= {"low": np.full(cols, -1e6, np.float32), "high": np.full(cols, 1e6, np.float32)}
    made |= {"bits": np.full((1, cols), 8, np.float32), "key": rng.integers(2**31, size=4)}
    return made | {"gkl": rng.normal(size=rows).astype(np.float32)}


def _first(a: Arrays) -> list[object]:
    rows = max(len(a["mu"]), 1)
    arrays = [a[n] for n in ("mu", "logvar", "low", "high", "bits")]
    return [*arrays, rows, *a["key"].tolist(), inverse_normal()]


def _run(k: object, a: Arrays) -> Arrays:
    y, kl = np.full_like(a["mu"], 77), np.full_like(a["gkl"], 77)
    k.bottleneck(*_first(a), y, kl)
    return {"y": y, "kl": kl}


def _run_backward(k: object, a: Arrays) -> Arrays:
    gmu, glogvar, gbits = (np.full_like(a[n], 77) for n in ("mu", "mu", "bits"))
    ends = [np.full(len(a["low"]), 77.0) for _ in range(2)]
    k.bottleneck_bwd(*_first(a), a["gy"], a["gkl"], gmu, glogvar, gbits, *ends)
    return {"gmu": gmu, "glogvar": glogvar}


def _parts(a: Arrays) -> tuple[np.ndarray, ...]:
    eps = np.empty_like(a["mu"])
    seed, step, sample, stream = a["key"].tolist()
    kernels(isa="scalar").noise(seed, step, sample, stream, 0, inverse_normal(), eps)
    s = np.exp(np.clip(0.5 * a["logvar"].astype(np.float64), -87, 88))
    return a["mu"].astype(np.float64), s, s * eps


def _oracle(a: Arrays) -> Arrays:
    mu, s, _ = _parts(a)
    return {"kl": (0.5 * (mu**2 + s**2 - 1 - a["logvar"])).sum(1)}


def _oracle_backward(a: Arrays) -> Arrays:
    mu, s, away = _parts(a)
    inside, rows = np.abs(mu + away) <= 1e6, a["gkl"][:, None].astype(np.float64)
    gz = np.where(inside, a["gy"], 0)
    made = {"gmu": gz + rows * mu}
    return made | {"glogvar": 0.5 * (gz * away + rows * (s**2 - 1))}


CASES = {
    "gaussian_f32": Case(_make, _run, _oracle, rtol=1e-5),
    "gaussian_bwd_f32": Case(_make, _run_backward, _oracle_backward, rtol=1e-5),
}
