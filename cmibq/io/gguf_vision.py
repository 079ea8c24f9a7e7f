"""Vision tower and projector of a LLaVA as the ``mmproj`` file of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.io.gguf import as_array, finish, open_gguf
from cmibq.nn import PackedLinear

__all__ = ["write_projector"]

_NAMES: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_GELU: Final = {"quick_gelu": False, "gelu": True, "gelu_pytorch_tanh": True}
"""Activation of the tower -> ``clip.use_gelu``."""


def _used_layers(config: Any) -> int:
    """Return how many layers run before the features are taken."""
    chosen, layers = config.vision_feature_layer, config.vision_config.num_hidden_layers
    if not isinstance(chosen, int):
        raise ModelError(
            f"vision_feature_layer is {chosen}; mmproj files are written for one layer"
        )
    return int(chosen if chosen >= 0 else layers + 1 + chosen)


def _tensors(tower: Any, projector: Any, layers: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name in the file, module); a CLIP tower may lie one level deeper."""
    inner: Any = getattr(tower, "vision_model", tower)
    yield "v.patch_embd", inner.embeddings.patch_embedding
    yield "v.position_embd", inner.embeddings.position_embedding
    norm = getattr(inner, "pre_layrnorm", None)
    if norm is not None:
        yield "v.pre_ln", norm
    for number, block in enumerate(inner.encoder.layers[:layers]):
        for name, short in _NAMES.items():
            yield f"v.blk.{number}.{short}", block.get_submodule(name)
    yield "mm.0", projector.linear_1
    yield "mm.2", projector.linear_2


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    weight = (
        module.dequantize() if isinstance(module, PackedLinear) else module.get_parameter("weight")
    )
    yield "weight", weight
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        yield "bias", bias


def _check(config: Any, projector: Any) -> None:
    family = config.vision_config.model_type
    if family not in ("clip_vision_model", "siglip_vision_model"):
        raise ModelError(f"vision tower {family!r} is not written as mmproj; supported is CLIP")
    if not hasattr(projector, "linear_2") or config.projector_hidden_act != "gelu":
        raise ModelError("the projector is no gelu between two linear layers, as mmproj has it")
    if config.vision_config.hidden_act not in _GELU:
        allowed = ", ".join(_GELU)
        raise ModelError(
            f"the vision tower has activation {config.vision_config.hidden_act!r}; mmproj files"
            f" know {allowed}"
        )


def write_projector(
    tower: nn.Module,
    projector: nn.Module,
    config: Any,
    images: Mapping[str, Any],
    path: Path,
) -> None:
    """Write a CLIP tower and a projector of two layers; matrices in float16.

    Args:
        tower: the vision tower.
        projector: with ``linear_1`` and ``linear_2``.
        config: of the whole model.
        images: ``image_mean`` and ``image_std`` of the image processor.
        path: file to make.

    Raises:
        ModelError: llama.cpp has no such tower or projector.
        ConfigError: the package ``gguf`` is not installed.
    """
    _check(config, projector)
    vision, layers = config.vision_config, _used_layers(config)
    writer = open_gguf().GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_bool("clip.has_text_encoder", False)
    writer.add_clip_projector_type("mlp")
    writer.add_file_type(1)
    writer.add_vision_use_gelu(_GELU[vision.hidden_act])
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_projection_dim(config.text_config.hidden_size)
    writer.add_vision_block_count(layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_image_mean([float(x) for x in images["image_mean"]])
    writer.add_vision_image_std([float(x) for x in images["image_std"]])
    writer.add_array("clip.vision.feature_layer", [layers])
    inner: Any = getattr(tower, "vision_model", tower)
    first = getattr(inner.embeddings, "class_embedding", None)
    if first is not None:
        writer.add_tensor("v.class_embd", as_array(first, half=False))
    for name, module in _tensors(tower, projector, layers):
        for leaf, tensor in _weights(module):
            half = name != "v.position_embd"
            writer.add_tensor(f"{name}.{leaf}", as_array(tensor, half=half))
    finish(writer)
