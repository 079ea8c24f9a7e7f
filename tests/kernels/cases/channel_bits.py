"""Cases of channel_bits: widths of all rows or of each, with and without rates and noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.runtime import kernels
from tests.kernels.cases.base import Arrays, Case, nasty

TABLE = 511


def _make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    low = rng.normal(size=cols).astype(np.float32)
    high = low + rng.choice(
        np.array([1.0, 0.3, 7.0, 0.0], np.float32), cols, p=[0.3, 0.3, 0.3, 0.1]
    )
    groups = rows if cols % 3 == 1 else 1
    bits = rng.uniform(0, 8, (groups, cols)).astype(np.float32)
    whole = rng.random(bits.shape) < 0.4
    bits[whole] = rng.integers(0, 9, int(whole.sum()))
    made = {"x": nasty(rng, rows, cols), "low": low, "high": high.astype(np.float32), "bits": bits}
    made |= {"gy": rng.normal(size=(rows, cols)).astype(np.float32)}
    made |= {"grate": rng.normal(size=rows).astype(np.float32)}
    if cols % 2:
        made["tables"] = rng.uniform(0, 9, (cols, TABLE)).astype(np.float32)
    if cols % 5 > 2 and rows:
        made["key"] = np.array([rows, *rng.integers(2**31, size=4)])
    return made


def _first(a: Arrays) -> list[object]:
    key = a["key"].tolist() if "key" in a else [0] * 5
    return [*(a[n] for n in ("x", "low", "high", "bits")), a.get("tables"), *key]


def _run(k: object, a: Arrays) -> Arrays:
    y, rate = np.full_like(a["x"], 77), np.full_like(a["grate"], 77)
    k.channel_bits(*_first(a), y, rate)
    return {"y": y, "rate": rate}


def _run_backward(k: object, a: Arrays) -> Arrays:
    made = {"gx": np.full_like(a["x"], 77), "gbits": np.full_like(a["bits"], 77)}
    made |= {"glow": np.full(len(a["low"]), 77.0), "ghigh": np.full(len(a["low"]), 77.0)}
    if "tables" in a:
        made["gtables"] = np.full((len(a["low"]), TABLE), 77, np.float32)
    work = np.full(k.channel_workspace(len(a["low"])) if "tables" in a else 0, 77.0)
    sums = (made["glow"], made["ghigh"], made.get("gtables"), work)
    k.channel_bits_bwd(*_first(a), a["gy"], a["grate"], made["gx"], made["gbits"], *sums)
    return made


def _width(
    a: Arrays, b: NDArray[np.float32], noise: NDArray[np.float32] | None
) -> dict[str, NDArray]:
    top = np.exp2(b) - np.float32(1)
    by = np.maximum(top, np.float32(1))
    step = np.maximum((a["high"] - a["low"]) / by, np.float32(1e-30))
    v = (a["x"] - a["low"]) / step
    u = np.clip(v, np.float32(0), top)
    q = np.rint(u) if noise is None else np.minimum(np.floor(u + noise), top)
    centre = (a["low"] + a["high"]) * np.float32(0.5)
    code = np.nan_to_num(q).astype(int)
    start = np.arange(len(a["low"])) * TABLE + top.astype(int)
    made = {"top": top, "by": by, "step": step, "v": v, "q": q, "start": start, "code": code}
    return made | {"level": np.where(b > 0, a["low"] + q * step, centre), "none": b == 0}


def _both(a: Arrays) -> tuple[NDArray, NDArray, dict[str, NDArray], dict[str, NDArray]]:
    bits, noise = a["bits"], None
    if "key" in a:
        noise = np.empty_like(a["x"])
        _, seed, step, sample, stream = a["key"].tolist()
        kernels(isa="scalar").noise(seed, step, sample, stream, 0, None, noise)
    whole = np.minimum(np.floor(bits), np.float32(7))
    share = bits - whole
    return (
        np.float32(1) - share,
        share,
        _width(a, whole, noise),
        _width(a, whole + np.float32(1), noise),
    )


def _oracle(a: Arrays) -> Arrays:
    with np.errstate(all="ignore"):
        w0, w1, m, n = _both(a)
        y, rate = w0 * m["level"] + w1 * n["level"], np.zeros(a["x"].shape)
        if "tables" in a:
            flat = a["tables"].ravel().astype(np.float64)
            rate = w0 * flat[m["start"] + m["code"]] + w1 * flat[n["start"] + n["code"]]
        return {"y": y, "rate": rate.sum(1)}


def _part(a: Arrays, w: NDArray, k: dict[str, NDArray]) -> tuple[NDArray, NDArray]:
    g, h = a["gy"] * w, a["gy"] * w + 0.0
    if "tables" in a:
        flat = a["tables"].ravel()
        more = k["start"] + np.minimum(k["code"] + 1, k["top"].astype(int))
        slope = (flat[more] - flat[k["start"] + np.maximum(k["code"] - 1, 0)]) / 2
        inverse = np.where(k["step"] > np.float32(1e-30), 1 / k["step"].astype(np.float64), 0)
        h = h + a["grate"][:, None] * w * slope * inverse
    inside = (k["v"] >= 0) & (k["v"] <= k["top"]) & ~k["none"]
    h = np.where(inside, h, 0.0)
    step = g * np.where(k["none"], 0.5, k["q"]) - np.where(inside, h * k["v"], 0.0)
    return h, step / k["by"]


def _oracle_backward(a: Arrays) -> Arrays:
    with np.errstate(all="ignore"):
        w0, w1, m, n = _both(a)
        (h0, s0), (h1, s1) = _part(a, w0, m), _part(a, w1, n)
        gx, high, gbits = h0 + h1, s0 + s1, a["gy"] * (n["level"] - m["level"])
        made = {"gx": gx, "ghigh": high.sum(0), "glow": (a["gy"] - gx - high).sum(0)}
        if "tables" in a:
            flat, grate = a["tables"].ravel(), a["grate"][:, None]
            gbits = gbits + grate * (flat[n["start"] + n["code"]] - flat[m["start"] + m["code"]])
            sums = np.zeros(flat.shape)
            for w, k in ((w0, m), (w1, n)):
                np.add.at(sums, k["start"] + k["code"], grate * w + 0 * a["gy"])
            made["gtables"] = sums.reshape(a["tables"].shape)
        groups = len(a["bits"])
        parts = gbits.reshape(groups, len(a["x"]) // groups if groups else 0, len(a["low"]))
        return made | {"gbits": parts.sum(1).reshape(a["bits"].shape)}


CASES = {
    "channel_bits_f32": Case(_make, _run, _oracle, rtol=1e-6),
    "channel_bits_bwd_f32": Case(_make, _run_backward, _oracle_backward, rtol=1e-5),
}
