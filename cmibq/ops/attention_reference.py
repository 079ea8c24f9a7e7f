"""The fusion block in plain torch: any device, any float dtype; the oracle of `ops.attention`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["reference", "reference_backward"]


def _split(t: Tensor, heads: int) -> Tensor:
    return t.view(*t.shape[:2], heads, t.shape[2] // heads).transpose(1, 2)


def _merge(t: Tensor) -> Tensor:
    return t.transpose(1, 2).flatten(2)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return (scores, their log-sum-exp, softmax); a row without keys has softmax 0."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask.bool()[:, None, None, :], -math.inf)
    lse = torch.logsumexp(scores, -1)
    shift = torch.where(lse == -math.inf, torch.zeros_like(lse), lse)
    return scores, lse, torch.exp(scores - shift.unsqueeze(-1))


def reference(
    xq: Tensor,
    xk: Tensor,
    wq: Tensor,
    bq: Tensor | None,
    wk: Tensor,
    bk: Tensor | None,
    wv: Tensor,
    bv: Tensor | None,
    wo: Tensor,
    bo: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None,
    heads: int,
    residual: bool,
    eps: float,
    planes: int,
    save: bool,
    entropy: bool,
    weights: bool,
) -> tuple[Tensor, ...]:
    """Return (out, q, k, v, ctx, y, lse, stat, entropy, weights); what is not wanted is empty.

    ``ctx = softmax(q k^T / sqrt(w)) v`` per head of width w, ``y = [xq +] ctx wo^T + bo``, ``out =
    layer_norm(y)`` (Vaswani et al., "Attention is all you need", 2017, eq. 1). `planes` and `save`
    concern the kernel.
    """
    q, k, v = F.linear(xq, wq, bq), F.linear(xk, wk, bk), F.linear(xk, wv, bv)
    scores, lse, p = _probabilities(_split(q, heads), _split(k, heads), mask)
    ctx = _merge(p @ _split(v, heads))
    y = F.linear(ctx, wo, bo) + (xq if residual else 0.0)
    mean = y.mean(-1)
    rate = torch.rsqrt((y - mean.unsqueeze(-1)).square().mean(-1) + eps)
    out = y if gamma is None else F.layer_norm(y, y.shape[-1:], gamma, beta, eps)
    stat = torch.stack([mean, rate], -1)
    none = [xq.new_empty(0) for _ in range(2)]
    spread = torch.where(p > 0, p * (lse.unsqueeze(-1) - scores), torch.zeros_like(p))
    seen = [spread.sum(-1) if entropy else none[0], p.mean(1) if weights else none[1]]
    if not save:
        q, k, v, ctx, y = (xq.new_empty(0) for _ in range(5))
    elif gamma is None:
        y = xq.new_empty(0)
    return out.clone() if out is y else out, q, k, v, ctx, y, lse, stat, *seen


def _norm_backward(g: Tensor, y: Tensor, stat: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
    """Return gradients of (y, gamma, beta) of a layer norm."""
    mean, rate = stat[..., :1], stat[..., 1:]
    h, e = (y - mean) * rate, g * gamma
    centred = e - e.mean(-1, keepdim=True) - h * (e * h).mean(-1, keepdim=True)
    return rate * centred, (g * h).sum((0, 1)), g.sum((0, 1))


def reference_backward(
    g: Tensor,
    xq: Tensor,
    xk: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    gamma: Tensor | None,
    mask: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ctx: Tensor,
    y: Tensor,
    lse: Tensor,
    stat: Tensor,
    heads: int,
    residual: bool,
    planes: int,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    """Return gradients of xq, xk, (wq, bq), ..., (wo, bo), gamma, beta; empty if unwanted."""
    dgamma = dbeta = g.new_empty(0)
    if gamma is not None:
        g, dgamma, dbeta = _norm_backward(g, y, stat, gamma)
    qh, kh, vh, dh = (_split(t, heads) for t in (q, k, v, g @ wo))
    _, _, p = _probabilities(qh, kh, mask)
    dp = dh @ vh.transpose(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / math.sqrt(qh.shape[-1])
    dq, dk, dv = (
        _merge(ds @ kh),
        _merge(ds.transpose(-1, -2) @ qh),
        _merge(p.transpose(-1, -2) @ dh),
    )
    dxq = dq @ wq + (g if residual else 0.0)
    pairs = [(dq, xq), (dk, xk), (dv, xk), (g, ctx)]
    linears = [(d.flatten(0, 1).T @ x.flatten(0, 1), d.sum((0, 1))) for d, x in pairs]
    grads = [dxq, dk @ wk + dv @ wv, *(t for pair in linears for t in pair), dgamma, dbeta]
    return tuple(t if w else g.new_empty(0) for t, w in zip(grads, wanted, strict=True))
