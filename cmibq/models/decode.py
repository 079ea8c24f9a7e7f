"""Decoder layers whose linears are packed: one token at a time without the host's overhead."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cmibq.models.kvcache import growing
from cmibq.models.step import Memory, Step
from cmibq.nn import Joined, PackedLinear
from cmibq.ops.library import direct, wants_grad

__all__ = ["accelerate_"]

LAYERS = {
    "transformers.models.llama.modeling_llama": "LlamaDecoderLayer",
    "transformers.models.mistral.modeling_mistral": "MistralDecoderLayer",
    "transformers.models.qwen2.modeling_qwen2": "Qwen2DecoderLayer",
    "transformers.models.qwen2_vl.modeling_qwen2_vl": "Qwen2VLDecoderLayer",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl": "Qwen2_5_VLDecoderLayer",
}
"""Decoder layers that do what `Step` does: RMS norm, q, k and v, rotary halves, attention, o, RMS
norm, ``down(act(gate) * up)``, with two residual sums."""

_ACTS = {"SiLUActivation": "silu", "SiLU": "silu"}


@dataclass
class Parts:
    """The modules of a decoder layer that `Step` uses.

    Args:
        qkv: q, k and v.
        o: output of attention.
        up, gate, down: of the MLP.
        norms: before attention and before the MLP.
        attention: the attention module, for its sizes.
        others: what must have no hooks, since it is not called.
        act: name of the activation.
        shared: memory that all layers of a model use in turn.
    """

    qkv: Joined
    o: Joined
    up: Joined
    gate: Joined
    down: Joined
    norms: tuple[nn.Module, nn.Module]
    attention: nn.Module
    others: tuple[nn.Module, ...]
    act: str
    shared: _Shared
    step: Step | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what refers to memory."""
        return self.__dict__ | {"step": None}

    def hooked(self) -> bool:
        """Tell whether somebody listens to a module that would not be called."""
        for module in self.others:
            if module._forward_hooks or module._forward_pre_hooks:
                return True
        return False


class _Shared:
    """Memory of the layers of a model, used by one thread at a time."""

    def __init__(self) -> None:
        self.lock, self.memory = threading.Lock(), Memory()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


class _Fast:
    """Mixed into the class of a decoder layer; one new token takes the short way."""

    _parts: Parts

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        attention: Any = self._parts.attention
        cache = growing(kwargs.get("past_key_values"), attention.layer_idx)
        if cache is not None and not args and hidden_states.shape[:2] == (1, 1):
            made = _one_token(self._parts, hidden_states, cache, kwargs)
            if made is not None:
                return made
        return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        base = type(self).__mro__[2]
        return _empty, (base,), self.__dict__


def _one_token(parts: Parts, hidden: Tensor, cache: Any, kwargs: Any) -> Tensor | None:
    """Return the result of the layer for one token, or None where the host must compute it."""
    config: Any = parts.attention.config
    plain = (
        kwargs.get("attention_mask") is None
        and kwargs.get("position_embeddings") is not None
        and config._attn_implementation == "sdpa"
        and cache.is_initialized
        and not parts.hooked()
        and direct(hidden)
        and not wants_grad(hidden)
    )
    if not plain or not parts.shared.lock.acquire(blocking=False):
        return None
    try:
        step = parts.step
        if step is None or not step.valid():
            step = parts.step = Step(parts, parts.shared.memory)
        return step(hidden, kwargs["position_embeddings"], cache)
    finally:
        parts.shared.lock.release()


@functools.cache
def _fast_class(base: Any) -> Any:
    return type(base.__name__, (_Fast, base), {"__module__": base.__module__})


def _empty(base: Any) -> Any:
    made = _fast_class(base)
    return made.__new__(made)


def accelerate_(model: nn.Module) -> int:
    """Let the decoder layers of a model compute single new tokens without the host's overhead.

    Only layers whose linears are all packed, of the kinds in `LAYERS`, take part; their names,
    tensors and results for several tokens stay as they are, and so do ``model.generate`` and
    everything else that calls them. A single token with a cache is then computed in float32
    between the norms of a layer (also in bfloat16 models), its keys and values in the cache's
    dtype. Hooks on submodules, masks, other caches and gradients fall back to the host's code.

    Args:
        model: changed in place; calling it again changes nothing more.

    Returns:
        How many layers take part.

    Example:
        >>> accelerate_(nn.Linear(2, 2))
        0
    """
    shared, count = _Shared(), 0
    for layer in model.modules():
        if isinstance(layer, _Fast):
            count += 1
            continue
        base: Any = type(layer)
        if LAYERS.get(base.__module__) != base.__name__:
            continue
        parts = _parts(layer, shared)
        if parts is not None:
            layer._parts = parts  # type: ignore[assignment]
            layer.__class__ = _fast_class(base)
            count += 1
    return count


def _parts(layer: Any, shared: _Shared) -> Parts | None:
    """Return the modules of a decoder layer, or None if one is not as `Step` needs it."""
    attention, mlp = layer.self_attn, layer.mlp
    qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
    rest = [attention.o_proj, mlp.up_proj, mlp.gate_proj, mlp.down_proj]
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    act = _ACTS.get(type(mlp.act_fn).__name__)
    if not all(type(x) is PackedLinear for x in (*qkv, *rest)) or not Joined.fits(qkv):
        return None
    if act is None or getattr(attention, "sliding_window", None) is not None:
        return None
    o, up, gate, down = (Joined([x]) for x in rest)
    others = (attention, mlp, *qkv, *rest, *norms, mlp.act_fn)
    return Parts(Joined(qkv), o, up, gate, down, norms, attention, others, act, shared)
