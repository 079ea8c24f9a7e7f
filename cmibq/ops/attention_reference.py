"""The fusion block in plain torch: any device, any float dtype; the oracle of `ops.attention`."""

from __future__ import annotations

import math
from typing import Any

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
    wp: Tensor | None,
    bp: Tensor | None,
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
    """Return (out, kv, q, k, v, ctx, y, lse, stat, entropy, weights); what is not wanted is empty.

    ``kv = xk wp^T + bp``, or `xk`; ``ctx = softmax(q k^T / sqrt(w)) v`` per head of width w, ``y =
    [xq +] ctx wo^T + bo``, ``out = layer_norm(y)`` (Vaswani et al., "Attention is all you need",
    2017, eq. 1). `planes` is for the kernel.
    """
    kv = xk if wp is None else F.linear(xk, wp, bp)
    q, k, v = F.linear(xq, wq, bq), F.linear(kv, wk, bk), F.linear(kv, wv, bv)
    scores, lse, p = _probabilities(_split(q, heads), _split(k, heads), mask)
    ctx = _merge(p @ _split(v, heads))
    y = F.linear(ctx, wo, bo) + (xq if residual else 0.0)
    mean = y.mean(-1)
    rate = torch.rsqrt((y - mean.unsqueeze(-1)).square().mean(-1) + eps)
    out = y if gamma is None else F.layer_norm(y, y.shape[-1:], gamma, beta, eps)
    stat = torch.stack([mean, rate], -1)
    spread = torch.where(p > 0, p * (lse.unsqueeze(-1) - scores), torch.zeros_like(p))
    held = [None if wp is None else kv, q, k, v, ctx, None if gamma is None else y]
    held = held if save else [None] * 6
    seen = [spread.sum(-1) if entropy else None, p.mean(1) if weights else None]
    made = (out, *held, lse, stat, *seen)
    return tuple(xq.new_empty(0) if t is None else t for t in made)


def _norm_backward(g: Tensor, y: Tensor, stat: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
    """Return gradients of (y, gamma, beta) of a layer norm."""
    mean, rate = stat[..., :1], stat[..., 1:]
    h, e = (y - mean) * rate, g * gamma
    centred = e - e.mean(-1, keepdim=True) - h * (e * h).mean(-1, keepdim=True)
    return rate * centred, (g * h).sum((0, 1)), g.sum((0, 1))


def _attention_backward(
    dctx: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int
) -> tuple[Tensor, ...]:
    """Return gradients of (q, k, v) from that of ctx."""
    qh, kh, vh, dh = (_split(t, heads) for t in (q, k, v, dctx))
    _, _, p = _probabilities(qh, kh, mask)
    dp = dh @ vh.transpose(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / math.sqrt(qh.shape[-1])
    dk, dv = ds.transpose(-1, -2) @ qh, p.transpose(-1, -2) @ dh
    return _merge(ds @ kh), _merge(dk), _merge(dv)


def _linear_backward(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients of the weight and the bias of a linear layer."""
    return dy.flatten(0, 1).T @ x.flatten(0, 1), dy.sum((0, 1))


def reference_backward(g: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Return gradients of xq, xk, (wp, bp), ..., (wo, bo), gamma, beta; empty if unwanted.

    Args:
        g: [B, Lq, Do], gradient of the output.
        args: as of the operator `attention_backward`: the operands of the forward pass and the
            mask, what it saved, then heads, residual, eps, planes, save, wanted.
    """
    operands, saved, options = args[:15], args[15:23], args[23:]
    xq, xk, wp, _, wq, _, wk, _, wv, _, wo, _, gamma, _, mask = operands
    *_, save, wanted = options
    heads, residual = options[:2]
    if not save:
        again = (*options[:4], True, False, False)
        saved = reference(*operands, *again)[1:9]
    kv, q, k, v, ctx, y, _, stat = saved
    dy, dgamma, dbeta = g, g.new_empty(0), g.new_empty(0)
    if gamma is not None:
        dy, dgamma, dbeta = _norm_backward(g, y, stat, gamma)
    dq, dk, dv = _attention_backward(dy @ wo, q, k, v, mask, heads)
    dxq = dq @ wq + (dy if residual else 0.0)
    dkv = dk @ wk + dv @ wv
    dxk = dkv if wp is None else dkv @ wp
    kv = xk if wp is None else kv
    pairs = ((dkv, xk), (dq, xq), (dk, kv), (dv, kv), (dy, ctx))
    grads = [dxq, dxk, *(t for pair in pairs for t in _linear_backward(*pair)), dgamma, dbeta]
    return tuple(t if w else g.new_empty(0) for t, w in zip(grads, wanted, strict=True))
