"""A Llama-like decoder as functions of a dict of weights, and MBQ over its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracles import mbq

__all__ = ["GROUPS", "Layout", "Run", "attention", "group_block", "layer", "logits", "mlp", "run"]

# group -> (what absorbs 1/s, the Linears that take s)
GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "qkv": ("input_layernorm", ("q_proj", "k_proj", "v_proj")),
    "o": ("v_proj", ("o_proj",)),
    "gate_up": ("post_attention_layernorm", ("gate_proj", "up_proj")),
    "down": ("up_proj", ("down_proj",)),
}
LINEARS = tuple(name for _, names in GROUPS.values() for name in names)
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """What a layer needs besides its weights: positions, who may see whom, head size."""

    cos: Tensor
    sin: Tensor
    keep: Tensor
    head: int

    @classmethod
    def of(cls, attention_mask: Tensor, head: int) -> Layout:
        """Return positions 0 .. T-1 and the causal mask without padded keys."""
        tokens = attention_mask.shape[-1]
        inverse = 1.0 / (10000.0 ** (torch.arange(0, head, 2).float() / head))
        angle = torch.arange(tokens).float()[:, None] * inverse
        angle = torch.cat([angle, angle], -1)[None]
        causal = torch.ones(tokens, tokens).tril().bool()
        return cls(angle.cos(), angle.sin(), causal & attention_mask.bool()[:, None, None], head)


def _heads(x: Tensor, head: int) -> Tensor:
    return x.unflatten(-1, (-1, head)).transpose(1, 2)


def _rotate(x: Tensor, layout: Layout) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * layout.cos[:, None] + torch.cat([-b, a], -1) * layout.sin[:, None]


def mix(x: Tensor, w: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return the input of ``o_proj``."""
    q, k, v = (_heads(F.linear(x, w[n]), layout.head) for n in ("q_proj", "k_proj", "v_proj"))
    q, k = _rotate(q, layout), _rotate(k, layout)
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.keep)
    return out.transpose(1, 2).flatten(2)


def attention(x: Tensor, w: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return the self-attention output."""
    return F.linear(mix(x, w, layout), w["o_proj"])


def gated(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    """Return the input of ``down_proj``."""
    return F.silu(F.linear(x, w["gate_proj"])) * F.linear(x, w["up_proj"])


def mlp(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    """Return the feed-forward output."""
    return F.linear(gated(x, w), w["down_proj"])


def group_block(group: str, w: Mapping[str, Tensor], layout: Layout) -> mbq.Block:
    """Return the function whose output the search of ``group`` compares."""
    if group == "qkv":
        return lambda x, part: attention(x, {**w, **part}, layout)
    if group == "gate_up":
        return lambda x, part: mlp(x, {**w, **part})
    return lambda x, part: F.linear(x, next(iter(part.values())))


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def layer(
    x: Tensor, w: Mapping[str, Tensor], layout: Layout, scheme: mbq.Scheme | None = None
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return the layer's output, the inputs of its groups and the outputs of o and down.

    With ``scheme`` only the activations are quantised here; give quantised weights.
    """
    act = scheme.act if scheme else lambda t: t
    feed = {"qkv": _norm(x, w["input_layernorm"])}
    feed["o"] = mix(act(feed["qkv"]), w, layout)
    made = {"o_proj": F.linear(act(feed["o"]), w["o_proj"])}
    x = x + made["o_proj"]
    feed["gate_up"] = _norm(x, w["post_attention_layernorm"])
    feed["down"] = gated(act(feed["gate_up"]), w)
    made["down_proj"] = F.linear(act(feed["down"]), w["down_proj"])
    return x + made["down_proj"], feed, made


def fuse(w: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> Weights:
    """Return the weights with every group's scale moved into what precedes it."""
    out = dict(w)
    for group, s in scales.items():
        previous, names = GROUPS[group]
        if previous in LINEARS:
            out[previous], out[names[0]] = mbq.fuse_linear(out[previous], out[names[0]], s)
        else:
            out[previous], new = mbq.fuse_norm(out[previous], [out[n] for n in names], s)
            out |= dict(zip(names, new, strict=True))
    return out


def quantise(w: Mapping[str, Tensor], scheme: mbq.Scheme) -> Weights:
    """Return the weights with all seven Linears fake-quantised."""
    return {n: scheme.weight(t) if n in LINEARS else t for n, t in w.items()}


@dataclass
class Model:
    """Weights of a small language model and one calibration batch."""

    layers: list[Weights]
    norm: Tensor
    head: Tensor
    x: Tensor
    labels: Tensor
    attention_mask: Tensor
    answer: Tensor
    vision: Tensor

    def layout(self, rows: slice = slice(None)) -> Layout:
        """Return the layout of some samples (two heads)."""
        return Layout.of(self.attention_mask[rows], self.x.shape[-1] // 2)


def logits(model: Model, scheme: mbq.Scheme | None = None) -> Tensor:
    """Return logits [B, T, vocab]; ``scheme`` quantises activations."""
    x = model.x
    for w in model.layers:
        x, _, _ = layer(x, w, model.layout(), scheme)
    return F.linear(_norm(x, model.norm), model.head)


def gradients(model: Model) -> dict[str, Tensor]:
    """Return dL/d(output) [layer, sample, T, C] of o and down; each sample's loss divided by B."""
    found: dict[str, list[Tensor]] = {"o_proj": [], "down_proj": []}
    for i in range(len(model.x)):
        x, made = model.x[i : i + 1].requires_grad_(), []
        for w in model.layers:
            x, _, out = layer(x, w, model.layout(slice(i, i + 1)))
            made.append(out)
        scores = F.linear(_norm(x, model.norm), model.head)[0, :-1]
        loss = F.cross_entropy(scores, model.labels[i, 1:], ignore_index=-100) / len(model.x)
        for name, grads in found.items():
            per_layer = torch.autograd.grad(loss, [m[name] for m in made], retain_graph=True)
            grads.append(torch.cat(per_layer))
    return {name: torch.stack(grads, 1) for name, grads in found.items()}


@dataclass
class Run:
    """A whole search: ratios per kind, and the group searches in the order made."""

    ratios: dict[str, list[float]] = field(default_factory=dict)
    found: list[mbq.Found] = field(default_factory=list)


def run(
    model: Model, scheme: mbq.Scheme, loss: str, *, reweight: bool, distort: bool = False
) -> Run:
    """Search every layer in turn and fuse the scales into ``model``."""
    result, layout, x = Run(), model.layout(), model.x
    if reweight:
        for name, grads in gradients(model).items():
            _, ratio = mbq.modality_ratios(grads, model.answer, model.vision)
            result.ratios[name] = ratio.tolist()
    stream = x.clone() if distort else None
    for i, w in enumerate(model.layers):
        out, feed, _ = layer(x, w, layout)
        scales: dict[str, Tensor] = {}
        for group in GROUPS:
            seen = None if stream is None else _distorted(w, scales, scheme, stream, layout)[group]
            name = "o_proj" if group in ("qkv", "o") else "down_proj"
            ratio = result.ratios[name][i] if reweight else None
            masks = (model.answer, model.vision) if reweight else (None, None)
            weight = mbq.token_weights(x.shape[:2], *masks, ratio, loss)
            part = {n: w[n] for n in GROUPS[group][1]}
            block = group_block(group, w, layout)
            options = {"loss": loss, "seen": seen}
            hit = mbq.search(block, part, feed[group], scheme, weight, **options)
            scales[group] = hit.scale
            result.found.append(hit)
        model.layers[i] = fuse(w, scales)
        x = out
        if stream is not None:
            stream, _, _ = layer(stream, quantise(model.layers[i], scheme), layout, scheme)
    return result


def _distorted(
    w: Weights, scales: dict[str, Tensor], scheme: mbq.Scheme, stream: Tensor, layout: Layout
) -> dict[str, Tensor]:
    """Return group inputs of the quantised stream: unquantised until a first scale is known."""
    if not scales:
        return layer(stream, w, layout)[1]
    return layer(stream, quantise(fuse(w, scales), scheme), layout, scheme)[1]
