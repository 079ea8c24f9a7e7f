"""Cases of attention and layer norm: the whole block, forward and backward, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.kernels.cases.base import Arrays, Case

NAMES = ("xq", "xk", "wp", "bp", "wq", "bq", "wk", "bk", "wv", "bv", "wo", "bo", "gamma", "beta")
EPS = 1e-5


def make(rng: np.random.Generator, rows: int, cols: int) -> dict[str, NDArray]:
    """Derive a batch of 1 or 2, up to 70 queries, up to 130 keys, 1..3 heads of width 1..16."""
    batch, lq, lk = 1 + rows % 2, 1 + rows % 70, 1 + cols % 130
    heads, width, dk = 1 + cols % 3, 1 + (rows + cols) % 16, 1 + cols % 37
    d, first = heads * width, 1 + cols % 11

    def normal(*shape: int) -> NDArray:
        return rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)

    made = {"xq": normal(batch, lq, d) * 8, "xk": normal(batch, lk, dk) * 8}
    made |= {"wp": normal(first, dk), "bp": normal(first)}
    for name, k in (("q", d), ("k", first), ("v", first), ("o", d)):
        made |= {f"w{name}": normal(d, k), f"b{name}": normal(d)}
    mask = (rng.random((batch, lk)) < 0.2).astype(np.uint8)
    mask[0] |= rows % 5 == 4  # nobody to look at
    made |= {"gamma": normal(d) + 1, "beta": normal(d), "mask": mask, "g": normal(batch, lq, d)}
    return made | {"heads": np.array(heads)}


def run(planes: int, residual: int, norm: bool):
    def call(k: object, a: Arrays) -> Arrays:
        heads = int(a["heads"])
        (b, lq, d), (_, lk, dk), first = a["xq"].shape, a["xk"].shape, len(a["wp"])
        gamma, beta = (a["gamma"], a["beta"]) if norm else (None, None)
        params = [a[n] for n in NAMES[:12]] + [gamma, beta, a["mask"]]
        options = (heads, residual, EPS, planes)
        sizes = (b, lq, lk, d, dk, first, d, d, heads, residual, planes)

        def fresh(*shapes: tuple[int, ...]) -> list[NDArray]:
            return [np.full((b, *s), 77, np.float32) for s in shapes]

        def work(*how: int) -> NDArray:
            return np.full(k.attention_workspace(*sizes, *how), 255, np.uint8)

        def grads(held: tuple[object, ...], saved: int) -> list[NDArray]:
            made = [np.full_like(a[n], 77) for n in NAMES]
            k.attention_bwd(a["g"], *params, *options, *held, *made, work(saved, 3))
            return made if norm else made[:12]

        out, q, ctx, y, alone = fresh(*[(lq, d)] * 5)
        kv, key, v = fresh((lk, first), (lk, d), (lk, d))
        lse, entropy, stat, weights = fresh((heads, lq), (heads, lq), (lq, 2), (lq, lk))
        saved = (kv, q, key, v, ctx, y if norm else None, lse, stat)
        k.attention(*params, *options, out, *saved, entropy, weights, work(1, -1))
        few = (*[None] * 6, *fresh((heads, lq), (lq, 2)))
        k.attention(*params, *options, alone, *few, None, None, work(0, -1))
        return {
            "out": out,
            "alone": alone,
            "lse": lse,
            "entropy": entropy,
            "weights": weights,
            "grads": np.concatenate([t.ravel() for t in grads(saved, 1)]),
            "again": np.concatenate([t.ravel() for t in grads(few, 0)]),
        }

    return call


def softmax(s: NDArray, mask: NDArray) -> tuple[NDArray, NDArray]:
    s = np.where(mask[:, None, None, :] > 0, -np.inf, s)
    top = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(np.isinf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.where(np.isinf(top), 0, top)[..., 0] + np.log(total[..., 0])
    return e / np.where(total == 0, 1, total), lse


def oracle(residual: int, norm: bool):
    def want(a: Arrays) -> Arrays:
        f = {n: t.astype(np.float64) for n, t in a.items()}
        heads = int(a["heads"])

        def split(t: NDArray) -> NDArray:
            return t.reshape(*t.shape[:2], heads, -1).transpose(0, 2, 1, 3)

        def merge(t: NDArray) -> NDArray:
            return t.transpose(0, 2, 1, 3).reshape(t.shape[0], t.shape[2], -1)

        f["kv"] = f["xk"] @ f["wp"].T + f["bp"]
        q, k, v = (split(f[x] @ f[w].T + f[b]) for x, w, b in
                   (("xq", "wq", "bq"), ("kv", "wk", "bk"), ("kv", "wv", "bv")))  # fmt: skip
        root = np.sqrt(q.shape[-1])
        p, lse = softmax(q @ k.swapaxes(-1, -2) / root, a["mask"])
        ctx = merge(p @ v)
        y = ctx @ f["wo"].T + f["bo"] + (f["xq"] if residual else 0)
        h = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + EPS)
        rate, g = 1 / np.sqrt(y.var(-1, keepdims=True) + EPS), f["g"]
        dgamma, dbeta = (g * h).sum((0, 1)), g.sum((0, 1))
        if norm:
            e = g * f["gamma"]
            g = rate * (e - e.mean(-1, keepdims=True) - h * (e * h).mean(-1, keepdims=True))
        dctx = split(g @ f["wo"])
        dp = dctx @ v.swapaxes(-1, -2)
        ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / root
        dq, dk, dv = merge(ds @ k), merge(ds.swapaxes(-1, -2) @ q), merge(p.swapaxes(-1, -2) @ dctx)
        dkv = dk @ f["wk"] + dv @ f["wv"]
        grads = [dq @ f["wq"] + (g if residual else 0), dkv @ f["wp"]]
        pairs = ((dkv, f["xk"]), (dq, f["xq"]), (dk, f["kv"]), (dv, f["kv"]), (g, ctx))
        for d, x in pairs:
            grads += [np.einsum("bln,blk->nk", d, x), d.sum((0, 1))]
        grads += [dgamma, dbeta] if norm else []
        out = h * f["gamma"] + f["beta"] if norm else y
        return {
            "out": out,
            "alone": out,
            "lse": lse,
            "entropy": -(p * np.log(np.where(p > 0, p, 1))).sum(-1),
            "weights": p.mean(1),
            "grads": np.concatenate([t.ravel() for t in grads]),
            "again": np.concatenate([t.ravel() for t in grads]),
        }

    return want


def case(planes: int, residual: int, norm: bool, rtol: float) -> Case:
    return Case(make, run(planes, residual, norm), oracle(residual, norm), rtol)


CASES = {
    # Rounded operands: 2^-9 each, through four products and a softmax of scores up to 20.
    "attention_pack_f32": case(1, 0, False, 0.15),
    # float32 throughout; scores up to 20 turn 2^-24 into 2^-19, a layer norm of width 1..3 more.
    "attention_block_f32": case(3, 0, False, 2e-5),
    "attention_softmax_f32": case(3, 1, False, 2e-5),
    "attention_dsoftmax_f32": case(2, 1, True, 2e-3),
    "layernorm_f32_row": case(3, 1, True, 1e-4),
    "layernorm_bwd_f32_row": case(3, 0, True, 1e-4),
}
