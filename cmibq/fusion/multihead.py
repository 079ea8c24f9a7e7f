"""``torch.nn.MultiheadAttention``'s parameters through the fused operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from cmibq.errors import ConfigError
from cmibq.ops.attention import Attended, attention
from cmibq.ops.library import wants_grad

__all__ = ["check_heads", "multihead"]


def check_heads(anchor_dim: int, num_heads: int) -> None:
    """Refuse heads that do not divide the width.

    Raises:
        ConfigError: naming both and the heads up to 64 that do.
    """
    if num_heads < 1 or anchor_dim % num_heads:
        good = [h for h in range(1, 65) if anchor_dim % h == 0]
        raise ConfigError(
            f"num_heads is {num_heads}, which does not divide the anchor's width {anchor_dim};"
            f" allowed are {', '.join(map(str, good))}"
        )


def _common(given: torch.dtype, stored: torch.dtype) -> torch.dtype:
    """Return what features of one dtype are given to the operator in.

    bfloat16 features stay: the operator multiplies them in bfloat16 and adds in float32, whatever
    its parameters are stored in.
    """
    if given == torch.bfloat16 and stored in (torch.bfloat16, torch.float32):
        return given
    return torch.promote_types(given, stored)


def _operands(
    inner: nn.MultiheadAttention,
    first: nn.Linear | None,
    gate: Tensor | None,
    norm: nn.LayerNorm | None,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return the parameters as the operator names them, in the dtype of its features."""
    found: dict[str, Tensor] = dict(
        zip(("wq", "wk", "wv"), inner.in_proj_weight.chunk(3), strict=True)
    )
    found |= zip(("bq", "bk", "bv"), inner.in_proj_bias.chunk(3), strict=True)
    # A key's bias adds the same to all scores of a row: its gradient is 0 but for rounding, from
    # which Adam would make steps as large as all others.
    found["bk"] = found["bk"].detach()
    found |= {"wo": inner.out_proj.weight, "bo": inner.out_proj.bias}
    if gate is not None:
        found |= {"wo": gate.reshape(-1, 1) * found["wo"], "bo": gate * found["bo"]}
    if first is not None:
        found |= {"wp": first.weight, "bp": first.bias}
    if norm is not None:
        found |= {"gamma": norm.weight, "beta": norm.bias}
    keep = dtype == torch.bfloat16  # the operator takes them as they are stored
    return {n: t if keep else t.to(dtype) for n, t in found.items()}


def _in_torch(
    xq: Tensor, xk: Tensor, given: dict[str, Tensor], heads: int, eps: float, residual: bool
) -> Tensor:
    """Return what `multihead` does, by torch's own operators in the dtype of `xq`."""
    t = {n: x.to(xq.dtype) for n, x in given.items()}
    kv = linear(xk, t["wp"], t["bp"]) if "wp" in t else xk
    q, k, v = (
        linear(x, t[f"w{n}"], t[f"b{n}"]).unflatten(2, (heads, -1)).transpose(1, 2)
        for n, x in (("q", xq), ("k", kv), ("v", kv))
    )
    made = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = linear(made, t["wo"], t["bo"])
    out = xq + out if residual else out
    return layer_norm(out, out.shape[-1:], t["gamma"], t["beta"], eps) if "gamma" in t else out


def multihead(
    inner: nn.MultiheadAttention,
    xq: Tensor,
    xk: Tensor,
    *,
    first: nn.Linear | None = None,
    gate: Tensor | None = None,
    norm: nn.LayerNorm | None = None,
    residual: bool = True,
    recompute: bool = False,
    need_entropy: bool = False,
    need_weights: bool = False,
) -> Attended:
    """Return ``norm(xq + gate * inner(xq, first(xk), first(xk)))`` in the dtype of `xq`.

    A gate costs no pass over the features: it scales the rows of the output layer, which are few.
    One operator in C computes it on the CPU. Torch's own operators do in two cases where they are
    faster: off the CPU, and in bfloat16 without gradients (577 tokens, width 1024: 8 against 27 ms
    on two threads); not where entropy or weights are wanted, which they do not give.

    Args:
        inner: keeps the parameters; its own forward is not called.
        xq: [B, Lq, E].
        xk: [B, Lk, Dk].
        first: in front of keys and values.
        gate: scalar or [E], factor of what attention adds; a finite attention times zero is
            zero, so the result is then `xq` bit for bit (but -0 becomes +0).
        norm: after the sum.
        residual: add `xq`; False = only what attention adds.
        recompute: see `cmibq.ops.attention.attention`.
        need_entropy: also return the entropy of each row of attention.
        need_weights: also return attention averaged over heads.
    """
    dtype = _common(xq.dtype, inner.in_proj_weight.dtype)
    given = _operands(inner, first, gate, norm, dtype)
    q, k, eps = xq.to(dtype), xk.to(dtype), 1e-5 if norm is None else norm.eps
    half = dtype == torch.bfloat16 and not wants_grad(xq, xk, *given.values())
    if not (need_entropy or need_weights) and (half or xq.device.type not in ("cpu", "meta")):
        return Attended(
            _in_torch(q, k, given, inner.num_heads, eps, residual).to(xq.dtype), None, None
        )
    made = attention(
        q.contiguous(),
        k.contiguous(),
        **given,
        heads=inner.num_heads,
        eps=eps,
        residual=residual,
        recompute=recompute,
        need_entropy=need_entropy,
        need_weights=need_weights,
    )
    return made._replace(out=made.out.to(xq.dtype))
