"""Tiny LLaVA model folders and data sets, made in a moment, for tests of everything above `nn`.

Two shapes: `llava_dir` (Llama, as many key as query heads, chat template) and `llava_gqa_dir`
(Llama with grouped keys, biases and no chat template). Both see 16 x 16 pictures as four tokens.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORDS = tuple(
    "which digit colour is at the top left right ? red blue one two three yes no and".split()
)
CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SHAPES: dict[str, dict[str, Any]] = {
    "mha": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    "gqa": {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "attention_bias": True,
    },
}


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ("<pad>", "</s>", "<unk>", "<image>", "<|user|>", "<|assistant|>", "<|system|>")
    vocabulary = {w: i for i, w in enumerate((*special, "USER", "ASSISTANT", ":", *WORDS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(special[3:]),
        model_input_names=["input_ids", "attention_mask"],
    )


def make_processor(chat: bool = True) -> Any:
    import transformers

    images = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)(
        size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16}
    )
    return transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=make_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT if chat else None,
    )


def make_model(seed: int = 0, text: str = "llama", **shape: Any) -> Any:
    """Return a random LLaVA; `text` is the decoder family, `shape` goes to its configuration."""
    import torch
    from transformers import AutoConfig, CLIPVisionConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    defaults = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 32}
    defaults |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    decoder = AutoConfig.for_model(
        text, **(defaults | {"max_position_embeddings": 128, "initializer_range": 0.2} | shape)
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=decoder,
        image_token_id=3,
        image_seq_length=4,
        vision_feature_layer=-1,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Llava(config)
        for name, value in model.named_parameters():
            if "language_model" in name and name.endswith("bias"):
                torch.nn.init.normal_(value, std=0.1)
            if "layernorm" in name:
                value.data.mul_(torch.exp(torch.randn_like(value)))
    return model.eval()


def write_llava(out: Path, shape: str = "mha", *, seed: int = 0, dtype: str = "float32") -> Path:
    """Write a model folder of one of `SHAPES`, as transformers would."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        make_model(seed, **SHAPES[shape]).to(getattr(torch, dtype)).save_pretrained(out)
        make_processor(chat=shape == "mha").save_pretrained(out)
    return out


def write_items(out: Path, count: int = 24, *, seed: int = 0) -> Path:
    """Write ``items.json`` and its pictures; every second picture has two questions."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    (out / "images").mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(count):
        picture = f"images/{number - number % 3 // 2:03d}.png"
        if not (out / picture).exists():
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(out / picture)
        asked = " ".join(rng.choice(WORDS[:9], size=rng.integers(2, 9)))
        told = " ".join(rng.choice(WORDS[10:], size=rng.integers(1, 4)))
        talk = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": told}]
        items.append({"id": f"item-{number}", "image": picture, "conversations": talk})
    path = out / "items.json"
    path.write_text(json.dumps(items))
    return path


@pytest.fixture(scope="session")
def llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; do not write to it (copy it first)."""
    return write_llava(tmp_path_factory.mktemp("llava"), "mha")


@pytest.fixture(scope="session")
def llava_gqa_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A differently shaped model folder; do not write to it (copy it first)."""
    return write_llava(tmp_path_factory.mktemp("llava-gqa"), "gqa")


@pytest.fixture(scope="session")
def items_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``items.json`` with 24 items; pictures in ``images`` beside it."""
    return write_items(tmp_path_factory.mktemp("items"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one torch thread: tensors are tiny here. For each folder whose conftest imports it."""
    from cmibq.ops.library import torch_threads

    with torch_threads(1):
        yield
