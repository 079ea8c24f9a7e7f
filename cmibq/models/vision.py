"""Layers of a vision tower whose linears are packed, as ``generate`` computes an image."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.models.hooks import hooks_of, listened
from cmibq.nn import Joined, PackedLinear
from cmibq.ops.library import direct, wants_grad

__all__ = ["LAYERS", "VisionParts", "find_parts", "generating", "vision_layer"]

LAYERS = {
    "transformers.models.clip.modeling_clip": "CLIPEncoderLayer",
    "transformers.models.siglip.modeling_siglip": "SiglipEncoderLayer",
    "transformers.models.dinov2.modeling_dinov2": "Dinov2Layer",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers": (
        "Dinov2WithRegistersLayer"
    ),
    "transformers.models.vit.modeling_vit": "ViTLayer",
}
"""Layers that do what `vision_layer` does: layer norm, q, k and v, attention over all tokens, out,
layer norm, ``fc2(act(fc1))``, with two residual sums, before which DINOv2 scales channels."""

_CLIP = ("self_attn", "out_proj", ("layer_norm1", "layer_norm2"), ())
_DINO = ("attention", "o_proj", ("norm1", "norm2"), ("layer_scale1", "layer_scale2"))
_NAMES = {
    "Dinov2Layer": _DINO,
    "Dinov2WithRegistersLayer": _DINO,
    "ViTLayer": ("attention", "o_proj", ("layernorm_before", "layernorm_after"), ()),
}
"""Layer -> attention, its output layer, the norms, and what scales channels; others as in CLIP."""

_ACTS = {"QuickGELUActivation": "quick_gelu", "GELUTanh": "gelu_tanh", "GELUActivation": "gelu"}
_NOW = threading.local()


@contextlib.contextmanager
def generating() -> Iterator[None]:
    """Let vision layers of this thread take the short way: elsewhere they stay the host's."""
    before = getattr(_NOW, "depth", 0)
    _NOW.depth = before + 1
    try:
        yield
    finally:
        _NOW.depth = before


@dataclass
class VisionParts:
    """The modules of a layer of a vision tower.

    Args:
        qkv: q, k and v.
        out, up, down: output of attention, and the two layers of the MLP.
        norms: before attention and before the MLP.
        attention: the attention module.
        heads: how many it has.
        scale: of its scores.
        gains: what scales channels before each residual sum; empty = nothing.
        others: what must have no hooks, since it is not called.
        act: name of the activation.
    """

    qkv: Joined
    out: Joined
    up: Joined
    down: Joined
    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    attention: nn.Module
    heads: int
    scale: float
    gains: tuple[nn.Module, ...]
    others: tuple[nn.Module, ...]
    act: str

    def hooked(self) -> bool:
        """Tell whether somebody listens to a module that would not be called."""
        return listened(hooks_of(self.others))


def find_parts(layer: Any) -> VisionParts | None:
    """Return the modules of a layer of `LAYERS`, or None if one is not as `vision_layer` needs it.

    Args:
        layer: of one of those kinds.
    """
    at, last, told, grown = _NAMES.get(layer.__class__.__name__, _CLIP)
    attention, mlp = getattr(layer, at), getattr(layer, "mlp", None)
    qkv: list[Any] = [getattr(attention, f"{n}_proj", None) for n in "qkv"]
    rest: list[Any] = [
        getattr(attention, last, None),
        getattr(mlp, "fc1", None),
        getattr(mlp, "fc2", None),
    ]
    norms = (getattr(layer, told[0]), getattr(layer, told[1]))
    gains = tuple(getattr(layer, n) for n in grown)
    if not all(type(x) is PackedLinear for x in (*qkv, *rest)) or not Joined.fits(qkv):
        return None
    assert mlp is not None  # it has fc1
    act = _ACTS.get(type(mlp.activation_fn).__name__)
    exact = getattr(mlp.activation_fn, "act", None) in (None, functional.gelu)
    if act is None or (act == "gelu" and not exact):
        return None
    if not all(type(x) is nn.LayerNorm for x in norms):
        return None
    out, up, down = (Joined([x]) for x in rest)
    heads = getattr(attention, "num_heads", None) or attention.num_attention_heads
    scale = getattr(attention, "scale", None) or attention.scaling
    others = (attention, mlp, *qkv, *rest, *norms, *gains, mlp.activation_fn)
    return VisionParts(
        Joined(qkv), out, up, down, norms, attention, heads, scale, gains, others, act
    )


def vision_layer(parts: VisionParts, hidden: Tensor, mask: Any) -> Tensor | None:
    """Return the result of a layer, or None where the host must compute it.

    q, k and v are one product, activation and residual sums are part of the products (before their
    results are rounded to bfloat16). Only inside `generating`.

    Args:
        parts: the modules of the layer.
        hidden: [B, T, H], float32 or bfloat16.
        mask: of the host; anything but None is for the host.

    Returns:
        [B, T, H].
    """
    attention: Any = parts.attention
    if not getattr(_NOW, "depth", 0) or mask is not None or hidden.dim() != 3:
        return None
    plain = hidden.dtype in (torch.float32, torch.bfloat16) and direct(hidden)
    if not plain or wants_grad(hidden) or parts.hooked() or attention.training:
        return None
    if attention.config._attn_implementation != "sdpa":
        return None
    batch, tokens, _ = hidden.shape
    qkv = parts.qkv(_norm(parts.norms[0], hidden))
    query, key, value = qkv.view(batch, tokens, 3, parts.heads, -1).permute(2, 0, 3, 1, 4)
    made = functional.scaled_dot_product_attention(query, key, value, scale=parts.scale)
    seen = made.transpose(1, 2).reshape(batch, tokens, -1)
    middle = _added(parts.out, seen, hidden, parts.gains[:1])
    wide = parts.up(_norm(parts.norms[1], middle), activation=parts.act)
    return _added(parts.down, wide, middle, parts.gains[1:])


def _added(linear: Joined, x: Tensor, before: Tensor, gains: tuple[nn.Module, ...]) -> Tensor:
    """Return ``before + gain * linear(x)``, in one product where there is no gain."""
    if not gains:
        return linear(x, residual=before)
    return torch.addcmul(before, linear(x), gains[0].get_parameter("lambda1"))


def _norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    made: Tensor = module.forward(x)
    return made
