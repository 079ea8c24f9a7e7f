"""Cases of scaleloss: candidates, float64 oracle, and data that single out one kernel.

With one-hot tokens every product has one term, so the loss shows the weight errors (and the
packing) exactly; with one-hot weights that their grid holds it shows the token errors exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.kernels.cases.base import Case

F32 = NDArray[np.float32]
CANDIDATES = 2


def make(name: str):
    kind = name.removesuffix("_bf16")

    def build(rng: np.random.Generator, rows: int, cols: int) -> dict[str, NDArray]:
        n, k = rows, cols
        t = min(24, max(k, 1)) if kind in ("weight", "group") else 11 + rows % 19
        w = (rng.normal(size=(n, k)) * np.exp(rng.normal(size=k))).astype(np.float32)
        x = (rng.normal(size=(t, k)) * np.exp(rng.normal(size=k))).astype(np.float32)
        s = np.exp(rng.normal(size=(CANDIDATES, k))).astype(np.float32)
        token = rng.random(t)
        if kind in ("weight", "group"):
            x = one_hot(rng, t, k, 0.5)
            w[rng.random((n, k)) < 0.1] = 0
        if kind == "token":
            w, s = one_hot(rng, n, k, -4.0), np.exp2(rng.integers(-3, 4, s.shape)).astype("f4")
        return {"x": x, "w": w, "token": token, "s": s}

    return build


def one_hot(rng: np.random.Generator, rows: int, cols: int, value: float) -> F32:
    out = np.zeros((rows, cols), np.float32)
    if cols:
        out[np.arange(rows), rng.integers(0, cols, rows)] = value
    return out


def settings(kind: str, k: int) -> list[tuple[int, int, int, int, int]]:
    """Return (bits, group, mode, act_bits, loss kind) to try; groups divide k."""
    half = k // 2 if k and k % 2 == 0 else 0
    whole = 32 if k and k % 32 == 0 else 0
    if kind == "group":
        return [(3, whole, 6, 0, 0), (2, whole, 5, 0, 0), (4, whole, 1, 0, 1), (8, whole, 0, 0, 0)]
    if kind == "weight":
        return [(3, half, 6, 0, 0), (4, half, 0, 0, 1), (2, 0, 5, 0, 0), (8, 0, 1, 0, 1)]
    if kind == "token":
        return [(2, 0, 1, 4, 0), (2, 0, 1, 8, 1)]
    return [(4, half, 6, 0, 0), (3, 0, 0, 0, 1), (4, half, 5, 8, 0), (4, 0, 1, 6, 1)]


def run(name: str):
    kind = name.removesuffix("_bf16")

    def call(k: object, a: dict[str, NDArray]) -> dict[str, NDArray]:
        out = {}
        for what in settings(kind, a["x"].shape[1]):
            first = np.array([0, len(a["x"]) // 3, len(a["x"]) // 3], np.int64)
            loss = np.full((CANDIDATES, len(first)), 77.0)
            (t, cols), n = a["x"].shape, len(a["w"])
            half = int(name.endswith("bf16"))
            size = k.scaleloss_workspace(t, n, cols, len(first), what[3], half)
            work = np.full(size, 255, np.uint8)
            k.scaleloss(a["x"], a["w"], a["token"], a["s"], *what, half, first, loss, work)
            out[f"loss{what}"] = loss
        return out

    return call


def fake_weight(w: F32, bits: int, group: int, mode: int) -> F32:
    """Quantise groups as written in csrc/core/grid.h, in float32."""
    if w.size == 0:
        return w
    rows = w.reshape(-1, group if group > 0 else w.shape[1])
    mx, mn = rows.max(1, keepdims=True), rows.min(1, keepdims=True)
    if mode & 2:
        mx, mn = np.maximum(mx, 0), np.minimum(mn, 0)
    tiny, top = np.float32(1e-5), np.float32(2 ** (bits - (mode & 1)) - 1)
    wide = np.maximum(np.abs(mx), np.abs(mn)) if mode & 1 else mx - mn
    scale = np.maximum(wide, tiny) / top
    if mode & 4:
        half = scale.astype(np.float16)
        scale = np.where(half == 0, np.float32(2.0**-24), half.astype(np.float32))
    zero = top + 1 if mode & 1 else np.clip(-np.rint(mn / scale), 0, top)
    code = np.clip(np.rint(rows / scale) + zero, 0, np.float32(2**bits - 1))
    return ((code - zero) * scale).reshape(w.shape)


def fake_token(x: F32, bits: int) -> F32:
    top = np.float32(2 ** (bits - 1) - 1)
    wide = np.abs(x).max(1, keepdims=True, initial=0)
    step = np.maximum(wide, np.float32(1e-5)) / top
    return np.clip(np.rint(x / step), -top - 1, top) * step


def bfloat16(v: NDArray) -> NDArray[np.float64]:
    """Round to nearest, ties to even; denormals become zero."""
    u = np.ascontiguousarray(v, np.float32).view(np.uint32)
    u = np.where(u & 0x7F800000, u + 0x7FFF + (u >> 16 & 1), 0) & 0xFFFF0000
    return u.astype(np.uint32).view(np.float32).astype(np.float64)


def oracle(name: str):
    kind = name.removesuffix("_bf16")
    rounded = bfloat16 if name.endswith("bf16") else np.float64

    def losses(a: dict[str, NDArray]) -> dict[str, NDArray]:
        out = {}
        for what in settings(kind, a["x"].shape[1]):
            bits, group, mode, act, power = what
            loss, cut = [], len(a["x"]) // 3
            for s in a["s"]:
                q = fake_weight(a["w"] * s, bits, group, mode)
                if act:
                    x, v = a["x"] / s, a["w"] * s
                    hat = fake_token(x, act)
                    e = rounded(hat) @ rounded(q - v).T + rounded(hat - x) @ rounded(v).T
                else:
                    # The difference of the weights is taken in float32, as published.
                    d = q / s - a["w"]
                    if rounded is bfloat16 and (group or len(s)) % 32 == 0:
                        d = (q - a["w"] * s) * (1 / s)
                    e = rounded(a["x"]) @ rounded(d).T
                per_token = a["token"] * (np.abs(e) ** (1 + power)).sum(1)
                loss.append([per_token[:cut].sum(), 0.0, per_token[cut:].sum()])
            out[f"loss{what}"] = np.array(loss)
        return out

    return losses


def case(kind: str, rtol: float) -> Case:
    return Case(make(kind), run(kind), oracle(kind), rtol)


CASES = {
    "scaleloss_weight_f32": case("weight", 1e-12),
    "scaleloss_token_f32": case("token", 1e-12),
    # Chains of at most 256 float32 additions, added up: far fewer than K roundings at random.
    "scaleloss_power_f32": case("tile", 200 * 2.0**-24),
    "scaleloss_panel_bf16": case("weight_bf16", 1e-12),
    "scaleloss_tokens_bf16": case("token_bf16", 1e-12),
    "scaleloss_weight_bf16": case("group_bf16", 1e-12),
    "scaleloss_tile_bf16": case("tile_bf16", 200 * 2.0**-23),
}
