"""Qwen2-VL and Qwen2.5-VL: any image size, positions in time, height and width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.models.base import GRADIENT_OF, LLAMA_ROWS, MODELS, Adapter, positions
from cmibq.models.llava import image_features
from cmibq.models.rows import QWEN2_5_VISION_ROWS, QWEN2_VISION_ROWS

__all__ = ["QWEN2_5_VL", "QWEN2_VL", "mrope_positions"]


def mrope_positions(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Return the positions of tokens as the model itself numbers them.

    Args:
        model: the model.
        batch: `cmibq.data.Batch`, its pictures with grids.

    Returns:
        ``position_ids`` int64 [3, B, T], or what `positions` gives without images.

    References:
        Wang et al., "Qwen2-VL", arXiv 2409.12191, section 2.1 (M-RoPE).
    """
    grids = batch.grids
    if grids is None:
        return positions(model, batch)
    hosted: Any = model
    found: Tensor = hosted.model.get_rope_index(
        batch.input_ids,
        mm_token_type_ids=batch.vision_mask.to(torch.int32),
        image_grid_thw=grids,
        attention_mask=batch.attention_mask,
    )[0]
    return {"position_ids": found}


QWEN2_VL = Adapter(
    family="qwen2_vl",
    decoders=("qwen2_vl_text", "qwen2_vl"),
    decoder_path="model.language_model",
    head_path="lm_head",
    rows=LLAMA_ROWS,
    image_features=image_features,
    gradient_of=GRADIENT_OF,
    decoder_inputs=mrope_positions,
    padding="left",
    projectors=("model.visual.merger",),
    towers=("model.visual.blocks",),
    tower_rows=QWEN2_VISION_ROWS,
)
MODELS.register("qwen2_vl")(QWEN2_VL)
QWEN2_5_VL = replace(
    QWEN2_VL,
    family="qwen2_5_vl",
    decoders=("qwen2_5_vl_text", "qwen2_5_vl"),
    tower_rows=QWEN2_5_VISION_ROWS,
)
MODELS.register("qwen2_5_vl")(QWEN2_5_VL)
