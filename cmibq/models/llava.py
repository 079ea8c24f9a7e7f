"""LLaVA 1.5 as Hugging Face has it: a vision tower, a projector, a Llama-like decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.models.base import GRADIENT_OF, LLAMA_ROWS, MODELS, Adapter

__all__ = ["LLAVA", "image_features"]


def image_features(model: nn.Module, images: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
    """Return the projected features [V_i, C] of images, by the model's own function.

    Args:
        model: a Hugging Face model with ``get_image_features``.
        images: ``pixel_values`` and what else the model takes for them.

    Raises:
        ModelError: the vision tower takes images of another size.
    """
    hosted: Any = model
    inputs = dict(images)
    pixels = inputs.pop("pixel_values")
    dtype = hosted.dtype
    try:
        found = hosted.get_image_features(pixels.to(dtype), **inputs, return_dict=True)
    except ValueError as error:
        size = " x ".join(map(str, pixels.shape[-2:]))
        raise ModelError(
            f"the vision tower cannot take images of {size} pixels ({error}); resize them, or set"
            " do_resize and size in processor_config.json"
        ) from error
    features: Tensor | tuple[Tensor, ...] = found.pooler_output
    return features


LLAVA = Adapter(
    family="llava",
    decoders=("llama", "mistral", "qwen2"),
    decoder_path="model.language_model",
    head_path="lm_head",
    rows=LLAMA_ROWS,
    image_features=image_features,
    gradient_of=GRADIENT_OF,
)
MODELS.register("llava")(LLAVA)
