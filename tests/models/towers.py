"""Tiny random vision towers, and folders of them, for the tests of composed towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VIT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4, "patch_size": 14}
VIT |= {"num_attention_heads": 4, "image_size": 42}


def clip(**fields: Any) -> Any:
    """Return a CLIP vision tower of 28 pixels and width 32."""
    import transformers as hf

    torch.manual_seed(0)
    fields = VIT | {"hidden_size": 32, "image_size": 28} | fields
    return hf.CLIPVisionModel(hf.CLIPVisionConfig(**fields)).eval()


def dino(**fields: Any) -> Any:
    """Return a DINOv2 tower of 42 pixels, width 24 and six layers."""
    import transformers as hf

    torch.manual_seed(1)
    return hf.Dinov2Model(hf.Dinov2Config(**(VIT | {"num_hidden_layers": 6} | fields))).eval()


def processors() -> tuple[Any, Any]:
    """Return the image processors of `clip` and `dino`."""
    import transformers as hf

    from cmibq.models.processor import quiet

    with quiet():
        return (
            hf.CLIPImageProcessor(
                size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
            ),
            hf.BitImageProcessor(
                size={"shortest_edge": 48},
                crop_size={"height": 42, "width": 42},
                image_mean=[0.485, 0.456, 0.406],
                image_std=[0.229, 0.224, 0.225],
            ),
        )


def folders(root: Path) -> tuple[Path, Path]:
    """Write a whole CLIP model and a DINOv2 tower with their processors; return both folders."""
    import transformers as hf

    from cmibq.models.processor import quiet

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
    vision = clip().config.to_dict()
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision))
    with quiet():
        model.save_pretrained(root / "clip")
        dino().save_pretrained(root / "dino")
    for name, one in zip(("clip", "dino"), processors(), strict=True):
        one.save_pretrained(root / name)
    return root / "clip", root / "dino"


def pixels(count: int = 2) -> dict[str, torch.Tensor]:
    """Return pixels of both towers."""
    g = torch.Generator().manual_seed(2)
    return {
        "anchor": torch.randn(count, 3, 28, 28, generator=g),
        "augmenting": torch.randn(count, 3, 42, 42, generator=g),
    }


def _vit(kind: str, **fields: Any) -> Any:
    """Return a tower of one of the families that are built alike."""
    import transformers as hf

    config, model = getattr(hf, f"{kind}Config"), getattr(hf, f"{kind}Model")
    return model(config(**(VIT | fields))).eval()


def tower(family: str) -> Any:
    """Return a tiny random tower of a family of `cmibq.models.towers.TOWERS`."""
    import transformers as hf

    torch.manual_seed(4)
    staged = {"image_size": 64, "patch_size": 4, "depths": [1, 1, 2, 1], "window_size": 2}
    if family in ("swin", "swinv2"):
        kind = {"swin": "Swin", "swinv2": "Swinv2"}[family]
        config = getattr(hf, f"{kind}Config")(**staged, embed_dim=8, num_heads=[1, 2, 2, 4])
        return getattr(hf, f"{kind}Model")(config).eval()
    if family in ("convnext", "convnextv2"):
        kind = {"convnext": "ConvNext", "convnextv2": "ConvNextV2"}[family]
        return _vit(kind, **staged, hidden_sizes=[8, 16, 24, 32])
    if family == "siglip_vision_model":
        return hf.SiglipVisionModel(hf.SiglipVisionConfig(**VIT)).eval()
    if family == "clip_vision_model":
        return clip()
    kind = {
        "dinov2": "Dinov2",
        "dinov2_with_registers": "Dinov2WithRegisters",
        "vit": "ViT",
        "deit": "DeiT",
        "beit": "Beit",
    }[family]
    return _vit(kind)
