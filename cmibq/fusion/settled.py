"""Trained fusions as plain linear layers: what is quantised, and what bfloat16 serving runs."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.fusion.base import Fusion
from cmibq.fusion.cross_attention import CALMCompositionModule, mapped
from cmibq.fusion.gated_attention import GatedAttention
from cmibq.fusion.placed_attention import PlacedAttention, placed
from cmibq.fusion.projection import AttentionMapping
from cmibq.ops.attention import Attended

__all__ = ["SettledAttention", "SettledFusion", "SettledMapping", "settle"]


class SettledAttention(nn.Module):
    """``norm(xq + out_proj(attention(q_proj(xq), k_proj(xk), v_proj(xk))))``, four linear layers.

    `torch.nn.MultiheadAttention` keeps queries, keys and values in one parameter that is no linear
    layer, so nothing that quantises linear layers sees it; here each is one.

    Args:
        inner: whose parameters are taken over (copied).
        first: linear layer in front of keys and values. Where that is less work it is multiplied
            into them; else it stays in front.
        gate: [E] or a scalar, multiplied into the output layer.
        norm: after the sum.
    """

    def __init__(
        self,
        inner: nn.MultiheadAttention,
        first: nn.Linear | None = None,
        gate: Tensor | None = None,
        norm: nn.LayerNorm | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = inner.num_heads
        weights, biases = inner.in_proj_weight.chunk(3), inner.in_proj_bias.chunk(3)
        pairs = list(zip(weights, biases, strict=True))
        self.first = first
        if first is not None and first.in_features <= 2 * first.out_features:
            pairs[1:] = [_product(w, b, first) for w, b in pairs[1:]]
            self.first = None
        self.q_proj, self.k_proj, self.v_proj = (_linear(w, b) for w, b in pairs)
        wo, bo = inner.out_proj.weight, inner.out_proj.bias
        scaled = (wo, bo) if gate is None else (gate.reshape(-1, 1) * wo, gate * bo)
        self.out_proj: nn.Module = _linear(*scaled)
        self.norm = norm

    def forward(
        self, xq: Tensor, xk: Tensor, *, entropy: bool, weights: bool, residual: bool = True
    ) -> Attended:
        """Return `Attended`; see `Fusion.attend`.

        Args:
            xq: [B, Lq, E].
            xk: [B, Lk, Dk].
            entropy: also return the entropy of each row of attention.
            weights: also return attention averaged over heads.
            residual: add `xq`.
        """
        xk = xk if self.first is None else self.first(xk)
        q, k, v = (
            layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, xq), (self.k_proj, xk), (self.v_proj, xk))
        )
        made = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if not residual:
            out = self.out_proj(made)
        elif isinstance(self.out_proj, nn.Linear):
            out = xq + self.out_proj(made)
        else:  # packed layers add before they round
            out = self.out_proj(made, residual=xq)
        out = out if self.norm is None else self.norm(out)
        return Attended(
            out, *(_seen(q, k, entropy, weights) if entropy or weights else (None,) * 2)
        )


class SettledMapping(nn.Module):
    """`AttentionMapping` with its attention settled."""

    def __init__(self, mapping: AttentionMapping) -> None:
        super().__init__()
        self.projection = mapping.projection
        self.self_attention = SettledAttention(mapping.self_attention)

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, Lk, anchor_dim] from [B, Lk, augmented_dim]."""
        inside = self.projection(features)
        made: Tensor = self.self_attention(inside, inside, entropy=False, weights=False).out
        return made


class SettledFusion(Fusion):
    """A `CALMCompositionModule` or `GatedAttention` whose linear layers are modules of their own.

    A `PlacedAttention` is a `GatedAttention` here too.

    Args:
        fusion: whose parameters are taken over.
    """

    def __init__(self, fusion: CALMCompositionModule | GatedAttention) -> None:
        super().__init__(fusion.anchor_dim, fusion.augmented_dim)
        self.placed = isinstance(fusion, PlacedAttention)
        gate = fusion.factor() if isinstance(fusion, GatedAttention) else None
        core = fusion.attention if isinstance(fusion, GatedAttention) else fusion
        plain = type(core.projection) is nn.Linear
        self.mapping = None if plain else _settled_mapping(core.projection)
        first = core.projection if isinstance(core.projection, nn.Linear) and plain else None
        self.attention = SettledAttention(core.cross_attention, first, gate, core.norm)

    def attend(
        self,
        anchor_features: Tensor,
        augmented_features: Tensor,
        *,
        need_entropy: bool = False,
        need_weights: bool = False,
    ) -> Attended:
        """See `Fusion.attend`."""
        self.check(anchor_features, augmented_features)
        queries, keys = anchor_features, augmented_features
        if self.placed:
            queries, keys = placed(queries), placed(keys)
        if self.mapping is not None:
            keys = mapped(self.mapping, keys)
        stored = next(self.attention.parameters(), anchor_features).dtype
        seen: Attended = self.attention(
            *(queries.to(stored), keys.to(stored)),
            entropy=need_entropy,
            weights=need_weights,
            residual=not self.placed,
        )
        out = seen.out.to(anchor_features.dtype)
        return seen._replace(out=anchor_features + out if self.placed else out)


@torch.no_grad()
def settle(fusion: Fusion) -> Fusion:
    """Return a fusion that computes the same with plain linear layers; for inference.

    Sums are taken in another order, so results differ by rounding. The projection is multiplied
    into the layers of keys and values (one product of five less), a gate into the output layer.

    Args:
        fusion: left as it is; a `SimpleAdd` is returned itself unless its mapping has attention.

    Example:
        >>> from cmibq.recipe.calm import CALMConfig
        >>> from cmibq.fusion import build_fusion
        >>> made = settle(build_fusion(8, 4, CALMConfig(attention_heads=2)))
        >>> [n for n, m in made.named_modules() if isinstance(m, nn.Linear)]
        ['attention.q_proj', 'attention.k_proj', 'attention.v_proj', 'attention.out_proj']
    """
    if isinstance(fusion, CALMCompositionModule | GatedAttention):
        return SettledFusion(fusion).train(fusion.training)
    found = getattr(fusion, "projection", None)
    if isinstance(found, AttentionMapping):
        fusion = copy.copy(fusion)
        fusion._modules = {**fusion._modules, "projection": SettledMapping(found)}
    return fusion


def _settled_mapping(mapping: nn.Module) -> nn.Module:
    return SettledMapping(mapping) if isinstance(mapping, AttentionMapping) else mapping


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight = nn.Parameter(weight.detach().clone())
    made.bias = nn.Parameter(bias.detach().clone())
    return made


def _product(weight: Tensor, bias: Tensor, first: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a linear layer behind another one."""
    w, before = weight.double(), first.weight.double()
    shift = bias.double() if first.bias is None else w @ first.bias.double() + bias.double()
    return (w @ before).to(weight.dtype), shift.to(bias.dtype)


def _seen(
    q: Tensor, k: Tensor, entropy: bool, weights: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the entropy of every row in nats, and attention averaged over heads, as wanted."""
    if not (entropy or weights):
        return None, None
    scores = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    logs = scores.log_softmax(-1)
    p = logs.exp()
    spread = torch.where(p > 0, -p * logs, torch.zeros_like(p)).sum(-1)
    return spread.detach() if entropy else None, p.mean(1).detach() if weights else None
