"""Tiny random models of every family, with processors, as folders that transformers would write."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fixtures import WORDS, make_model, make_processor

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.2,
}
PINPOINTS = [[16, 16], [16, 32], [32, 16], [32, 32]]
SPECIAL = ("<pad>", "</s>", "<unk>", "<image>", "<video>", "<start>", "<end>", "<|user|>")
SPECIAL += ("<|assistant|>", "<|system|>")
TOKENS = {t: i for i, t in enumerate((*SPECIAL, "USER", "ASSISTANT", ":", *WORDS))}
CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% for p in m['content'] %}"
    "{{ IMAGE if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tokenizer(**named: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(TOKENS, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=named or list(SPECIAL[3:]),
        model_input_names=["input_ids", "attention_mask"],
    )


def _pil(name: str, **fields: Any) -> Any:
    import transformers

    return getattr(transformers, f"{name}Pil", getattr(transformers, name, None))(**fields)


def _llava(out: Path) -> Any:
    make_processor().save_pretrained(out)
    return make_model(**{k: TEXT[k] for k in list(TEXT)[:5]})


def _llava_next(out: Path) -> Any:
    import transformers as t

    square = {"height": 16, "width": 16}
    images = _pil(
        "LlavaNextImageProcessor",
        size={"shortest_edge": 16},
        crop_size=square,
        image_grid_pinpoints=PINPOINTS[1:],
    )
    t.LlavaNextProcessor(
        images,
        tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "'<image>'"),
    ).save_pretrained(out)
    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**CLIP),
        text_config=t.MistralConfig(**TEXT),
        image_token_id=TOKENS["<image>"],
        image_grid_pinpoints=PINPOINTS[1:],
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    return t.LlavaNextForConditionalGeneration(config)


def _bare(out: Path, name: str, images: Any, words: Any, image: str, **fields: Any) -> None:
    """Write a processor that cannot be made here without torchvision, as its files."""
    images.save_pretrained(out)
    words.save_pretrained(out)
    (out / "chat_template.jinja").write_text(CHAT.replace("IMAGE", f"'{image}'"))
    content = {"processor_class": name, **fields}
    (out / "processor_config.json").write_text(json.dumps(content))


def _llava_onevision(out: Path) -> Any:
    import transformers as t

    images = _pil(
        "LlavaOnevisionImageProcessor",
        size={"height": 16, "width": 16},
        image_grid_pinpoints=PINPOINTS,
    )
    _bare(
        out,
        "LlavaOnevisionProcessor",
        images,
        tokenizer(),
        "<image>",
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**CLIP, vision_use_head=False),
        text_config=t.Qwen2Config(**TEXT),
        image_token_id=TOKENS["<image>"],
        video_token_id=TOKENS["<video>"],
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    return t.LlavaOnevisionForConditionalGeneration(config)


def _qwen(out: Path, name: str, vision: dict[str, Any]) -> Any:
    import transformers as t

    images = _pil(
        "Qwen2VLImageProcessor", patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    words = tokenizer(image_token="<image>", video_token="<video>")
    _bare(out, f"{name}Processor", images, words, "<start><image><end>")
    text = TEXT | {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 2],
        }
    }
    config = getattr(t, f"{name}Config")(
        text_config=text,
        vision_config=vision
        | {"patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, "depth": 2},
        image_token_id=TOKENS["<image>"],
        video_token_id=TOKENS["<video>"],
        vision_start_token_id=TOKENS["<start>"],
        vision_end_token_id=TOKENS["<end>"],
        tie_word_embeddings=False,
    )
    return getattr(t, f"{name}ForConditionalGeneration")(config)


def _qwen2_vl(out: Path) -> Any:
    return _qwen(
        out,
        "Qwen2VL",
        {"embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
    )


def _qwen2_5_vl(out: Path) -> Any:
    return _qwen(
        out,
        "Qwen2_5_VL",
        {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    )


def _internvl(out: Path) -> Any:
    import transformers as t

    images = _pil("GotOcr2ImageProcessor", size={"height": 16, "width": 16}, max_patches=4)
    words = tokenizer(
        start_image_token="<start>",
        end_image_token="<end>",
        context_image_token="<image>",
        video_token="<video>",
    )
    _bare(out, "InternVLProcessor", images, words, "<image>", image_seq_length=1)
    config = t.InternVLConfig(
        vision_config=t.InternVLVisionConfig(
            **{k: v for k, v in CLIP.items() if k not in ("image_size", "patch_size")},
            image_size=[16, 16],
            patch_size=[8, 8],
            layer_scale_init_value=0.5,
        ),
        text_config=t.Qwen2Config(**TEXT),
        image_token_id=TOKENS["<image>"],
        image_seq_length=1,
        tie_word_embeddings=False,
    )
    return t.InternVLForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[Path], Any]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "internvl": _internvl,
}


def write_family(name: str, out: Path, *, seed: int = 0) -> Path:
    """Write a model folder of a family."""
    import torch

    out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = FAMILIES[name](out)
        for parameter, value in model.named_parameters():
            if "norm" in parameter and parameter.endswith("weight"):
                value.data.mul_(torch.exp(0.5 * torch.randn_like(value)))
        model.eval().save_pretrained(out)
    return out


def write_talks(out: Path) -> Path:
    """Write items with no, one and two images of several sizes."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    sizes = [(20, 24), (16, 40), (33, 17), (24, 24)]
    for n, (height, width) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(out / f"{n}.png")
    asked = ["which digit ?", "top left right", "is red", "<image>\nwhat", "and two ? one yes"]
    items: list[dict[str, Any]] = [
        {"image": "0.png", "q": "<image>\nwhich digit ?", "a": "two"},
        {"image": ["1.png", "2.png"], "q": "<image><image>\ntop left", "a": "yes and no"},
        {"q": asked[1], "a": "blue"},
        {"image": ["3.png"], "q": "is <image> red ?", "a": "no"},
        {"image": ["0.png", "0.png"], "q": "<image> and <image>", "a": "one"},
        {"image": "2.png", "q": "<image>\nred or blue ? top", "a": "red and blue"},
    ]
    for n, item in enumerate(items):
        talk = [{"from": "human", "value": item.pop("q")}, {"from": "gpt", "value": item.pop("a")}]
        item |= {"id": f"t{n}", "conversations": talk}
    path = out / "talks.json"
    path.write_text(json.dumps(items))
    return path
