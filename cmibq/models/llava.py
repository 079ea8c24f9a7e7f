"""LLaVA 1.5 as Hugging Face has it: a vision tower, a projector, a Llama-like decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.models.base import LLAMA_ROWS, MODELS, Adapter

__all__ = ["LLAVA", "image_features"]


def image_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Return the projected features [U, V, C] of images [U, 3, H, W].

    Raises:
        ModelError: the vision tower takes images of another size.
    """
    hosted: Any = model
    dtype = hosted.dtype
    try:
        found = hosted.get_image_features(pixel_values.to(dtype), return_dict=True)
    except ValueError as error:
        size = " x ".join(map(str, pixel_values.shape[-2:]))
        raise ModelError(
            f"the vision tower cannot take images of {size} pixels ({error}); resize them, or set"
            " do_resize and size in processor_config.json"
        ) from error
    features = found.pooler_output
    return features if isinstance(features, Tensor) else torch.stack(list(features))


LLAVA = Adapter(
    family="llava",
    decoders=("llama", "mistral", "qwen2"),
    decoder_path="model.language_model",
    head_path="lm_head",
    rows=LLAMA_ROWS,
    image_features=image_features,
    gradient_of=(
        ("self_attn.o_proj", ("qkv", "o")),
        ("mlp.down_proj", ("gate_up", "down")),
    ),
)
MODELS.register("llava")(LLAVA)
