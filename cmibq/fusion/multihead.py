"""``torch.nn.MultiheadAttention``'s parameters through the fused operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ConfigError
from cmibq.ops.attention import Attended, attention

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


def multihead(
    inner: nn.MultiheadAttention,
    xq: Tensor,
    xk: Tensor,
    *,
    first: nn.Linear | None = None,
    gate: Tensor | None = None,
    norm: nn.LayerNorm | None = None,
    recompute: bool = False,
    need_entropy: bool = False,
    need_weights: bool = False,
) -> Attended:
    """Return ``norm(xq + gate * inner(xq, first(xk), first(xk)))`` in the dtype of `xq`.

    A gate costs no pass over the features: it scales the rows of the output layer, which are few.

    Args:
        inner: keeps the parameters; its own forward is not called.
        xq: [B, Lq, E].
        xk: [B, Lk, Dk].
        first: in front of keys and values.
        gate: scalar or [E], factor of what attention adds; a finite attention times zero is
            zero, so the result is then `xq` bit for bit (but -0 becomes +0).
        norm: after the sum.
        recompute: see `cmibq.ops.attention.attention`.
        need_entropy: also return the entropy of each row of attention.
        need_weights: also return attention averaged over heads.
    """
    dtype = _common(xq.dtype, inner.in_proj_weight.dtype)
    made = attention(
        xq.to(dtype).contiguous(),
        xk.to(dtype).contiguous(),
        **_operands(inner, first, gate, norm, dtype),
        heads=inner.num_heads,
        eps=1e-5 if norm is None else norm.eps,
        recompute=recompute,
        need_entropy=need_entropy,
        need_weights=need_weights,
    )
    return made._replace(out=made.out.to(xq.dtype))
