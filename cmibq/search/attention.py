"""Causal attention on some of its tokens: what a race of query, key and value scales asks for.

Keys and values are needed up to the last token asked for, queries and the output projection only
for the tokens themselves; running the module would compute all of them for every candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from cmibq.search.candidate import prepared

__all__ = ["CausalAttention"]

Projection = tuple[Tensor, Tensor | None]
Spans = Sequence[tuple[int, int]]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of channels (i, i + D/2) of [h, t, D] by the angles of [t, D]."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x weight' + bias in float32, the product in the dtype of the weight."""
    if weight.dtype == torch.float32:
        return linear(x, weight, bias)
    made = linear(x.to(weight.dtype), weight).float()
    return made if bias is None else made.add_(bias)


@dataclass(frozen=True, eq=False)
class CausalAttention:
    """Attention with rotary positions over sequences that lie end to end.

    A token sees itself and the tokens before it in its sequence. Callable as `RowRunner`; weights
    are those of query, key and value.

    Args:
        x: float32 [T, K], the input.
        lengths: tokens of each sequence, summing to T.
        biases: of query, key and value, each [N] or None.
        output: weight [C, heads * head_dim] and bias of the output projection.
        head_dim: channels of a head; heads that share keys follow each other.
        scaling: factor of query times key.
        cos: float32 [T, head_dim].
        sin: float32 [T, head_dim].

    References:
        Su et al., "RoFormer", 2021, eq. 34; Ainslie et al., "GQA", EMNLP 2023.

    Example:
        >>> eye, cos, sin = torch.eye(2), torch.ones(2, 2), torch.zeros(2, 2)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> run = CausalAttention(x, (2,), (None,) * 3, (eye, None), 2, 0.0, cos, sin)
        >>> run([eye, eye, eye], torch.tensor([1]), input_scale=None, act_bits=None)
        tensor([[0.5000, 0.5000]])
    """

    x: Tensor
    lengths: Sequence[int]
    biases: Sequence[Tensor | None]
    output: Projection
    head_dim: int
    scaling: float
    cos: Tensor
    sin: Tensor
    kept: list[object] = field(default_factory=list, repr=False)

    def __call__(
        self,
        weights: Sequence[Tensor],
        rows: Tensor,
        *,
        input_scale: Tensor | None,
        act_bits: int | None,
    ) -> Tensor:
        """Return the outputs [n, C] of the tokens `rows` (ascending) under other weights."""
        ends = torch.tensor(self.lengths).cumsum(0)
        owner = torch.searchsorted(ends, rows, right=True)
        met, counts = owner.unique_consecutive(return_counts=True)
        firsts = (ends[met] - torch.tensor(self.lengths)[met]).tolist()
        parts = rows.split(counts.tolist())
        spans = [(a, int(part[-1]) + 1) for a, part in zip(firsts, parts, strict=True)]
        seen = self._seen(spans, input_scale, act_bits, weights[0].dtype)
        key, value = (self._heads(seen, weights[i], i) for i in (1, 2))
        mixed: list[Tensor] = []
        at = 0
        for (a, b), part in zip(spans, parts, strict=True):
            own = slice(at, at + b - a)
            at += b - a
            query = self._heads(seen[own][part - a], weights[0], 0)
            keys = key[:, own], value[:, own]
            mixed.append(self._mix(query, keys, part, a, weights[0].dtype))
        return _project(torch.cat(mixed), self.output[0].to(weights[0].dtype), self.output[1])

    def _seen(
        self, spans: Spans, scale: Tensor | None, act_bits: int | None, dtype: torch.dtype
    ) -> Tensor:
        """Return the tokens of some spans as the layers see them; kept while they stay as is."""
        key = (tuple(spans), dtype)
        plain = scale is None and act_bits is None
        if plain and self.kept[:1] == [key]:
            return cast(Tensor, self.kept[1])
        made = torch.cat([self.x[a:b] for a, b in spans])
        made = prepared(made, scale, act_bits).to(dtype)
        if plain:
            self.kept[:] = [key, made]
        return made

    def _heads(self, x: Tensor, weight: Tensor, which: int) -> Tensor:
        """Project tokens [t, K] to [heads, t, head_dim]."""
        made = _project(x, weight, self.biases[which])
        return made.view(len(x), -1, self.head_dim).transpose(0, 1)

    def _mix(
        self,
        query: Tensor,
        keys: tuple[Tensor, Tensor],
        rows: Tensor,
        start: int,
        dtype: torch.dtype,
    ) -> Tensor:
        """Let the tokens `rows` look at the keys and values of their sequence: [n, heads * D]."""
        key, value = keys
        end = start + key.shape[1]
        query = _rotate(query, self.cos[rows], self.sin[rows])
        key = _rotate(key, self.cos[start:end], self.sin[start:end])
        mask = torch.arange(start, end) <= rows[:, None]
        query, key, value = (t.to(dtype)[None] for t in (query, key, value))
        out = scaled_dot_product_attention(
            query, key, value, mask, scale=self.scaling, enable_gqa=True
        )
        mixed: Tensor = out[0].transpose(0, 1).flatten(1)
        return mixed
