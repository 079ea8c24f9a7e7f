"""Tiny random Hugging Face models of the families that take a CM-IBQ layer, and batches."""

from __future__ import annotations

from typing import Any

import torch

from tests.fixtures import SHAPES, make_model

IMAGE, BEGIN, END = 3, 5, 6
FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_vl")
PINS = [[16, 16], [16, 32], [32, 16]]


def _text(family: str = "qwen2", **more: Any) -> Any:
    from transformers import AutoConfig

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 32}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return AutoConfig.for_model(
        family, **(shape | special | {"max_position_embeddings": 128} | more)
    )


def _clip() -> Any:
    from transformers import CLIPVisionConfig

    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return CLIPVisionConfig(**size, num_attention_heads=2, image_size=16, patch_size=8)


def _siglip() -> Any:
    from transformers import SiglipVisionConfig

    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    made = SiglipVisionConfig(**size, num_attention_heads=2, image_size=16, patch_size=8)
    made.vision_use_head = False
    return made


def make(family: str) -> Any:
    """Return a random model of a family, in training mode."""
    import transformers as hf

    torch.manual_seed(0)
    if family == "llava":
        return make_model(**(SHAPES["mha"] | {"hidden_size": 32, "intermediate_size": 48})).train()
    if family == "qwen2_vl":
        vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
        config = hf.Qwen2VLConfig(
            vision_config=vision | {"patch_size": 4, "in_channels": 3, "spatial_merge_size": 2},
            text_config=_text("qwen2_vl_text", rope_parameters=rope).to_dict(),
            **{"image_token_id": IMAGE, "video_token_id": 4},
            **{"vision_start_token_id": BEGIN, "vision_end_token_id": END},
        )
        return hf.Qwen2VLForConditionalGeneration(config).train()
    common = {"image_grid_pinpoints": PINS, "vision_feature_select_strategy": "default"}
    if family == "llava_next":
        config = hf.LlavaNextConfig(
            vision_config=_clip(),
            text_config=_text("llama"),
            image_token_id=IMAGE,
            vision_feature_layer=-1,
            **common,
        )
        return hf.LlavaNextForConditionalGeneration(config).train()
    common["vision_feature_select_strategy"] = "full"
    config = hf.LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=_text(),
        image_token_id=IMAGE,
        video_token_id=4,
        vision_feature_layer=-1,
        **common,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config).train()


def batch(family: str, images: tuple[int, ...] = (1, 1, 1), answers: int = 3) -> dict[str, Any]:
    """Return inputs with `images` images in each row, and labels on the last `answers` tokens."""
    g = torch.Generator().manual_seed(1)
    count, inputs = sum(images), {}
    if family == "llava":
        inputs["pixel_values"] = torch.randn(count, 3, 16, 16, generator=g)
        sizes = [4] * count
    elif family == "qwen2_vl":
        grid = torch.tensor([[1, 4, 4], [1, 2, 4]])[torch.arange(count) % 2]
        inputs["image_grid_thw"] = grid
        inputs["pixel_values"] = torch.randn(int(grid.prod(1).sum()), 96, generator=g)
        sizes = (grid.prod(1) // 4).tolist()
    else:  # every second image is wide: a small copy and two tiles
        wide = [i % 2 == 1 for i in range(count)]
        inputs["pixel_values"] = torch.randn(count, 3, 3, 16, 16, generator=g)
        inputs["image_sizes"] = torch.tensor([[16, 32] if w else [16, 16] for w in wide])
        sizes = [4 + 2 * (4 + 1) if w else 4 + 2 * (2 + 1) for w in wide]
    rows, at = [], 0
    for n in images:
        row = torch.randint(8, 30, (3,), generator=g).tolist()
        for size in sizes[at : at + n]:
            row += [BEGIN, *[IMAGE] * size, END]
        at += n
        rows.append(row + torch.randint(8, 30, (4 + answers,), generator=g).tolist())
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    inputs["input_ids"] = ids
    inputs["attention_mask"] = torch.tensor(
        [[i < len(r) for i in range(width)] for r in rows]
    ).long()
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        labels[i, len(row) - answers : len(row)] = ids[i, len(row) - answers : len(row)]
    inputs["labels"] = labels
    if family == "qwen2_vl":
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs


def prompt_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs without labels."""
    return {k: v for k, v in inputs.items() if k != "labels"}
