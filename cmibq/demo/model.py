"""The demo model: a small LLaVA (CLIP vision tower, projector, Llama decoder) of our own.

The architecture is Hugging Face's ``LlavaForConditionalGeneration``, unmodified; only the sizes
are small. The weights that ship were trained by `cmibq.demo.training` on our own pictures.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from cmibq.demo.outliers import plant_outliers_, undo_outliers_
from cmibq.demo.scenes import CANVAS, CELL, COLOURS, NUMBERS
from cmibq.errors import ModelError
from cmibq.fileio import read_json, sha256_bytes, write_json

if TYPE_CHECKING:
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

__all__ = [
    "ANSWER",
    "END",
    "IMAGE",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "IMAGE_TOKENS",
    "PLANTED_FACTORS",
    "USER",
    "WEIGHTS",
    "build_chat_processor",
    "build_model",
    "build_processor",
    "build_tokenizer",
    "load_demo_model",
    "plant_outliers_",
    "undo_outliers_",
    "write_model_dir",
]

PAD, END, UNKNOWN, IMAGE = "<pad>", "</s>", "<unk>", "<image>"
USER, ANSWER = "<|user|>", "<|assistant|>"
SPECIAL: Final = (PAD, END, UNKNOWN, IMAGE, USER, ANSWER)
IMAGE_TOKENS: Final = (CANVAS // CELL) ** 2
IMAGE_MEAN: Final = 0.1
IMAGE_STD: Final = 0.25
WEIGHTS: Final = Path(__file__).parent / "weights"
PLANTED_FACTORS: Final = "planted_factors.json"
_WORDS: Final = (
    *("which", "what", "where", "is", "at", "the", "digit", "digits", "colour", "even", "sum"),
    *("of", "and", "or", "larger", "two", "top", "bottom", "left", "right", "yes", "no", "?", ","),
)
_CHAT: Final = (
    "{% for message in messages %}"
    "{{ '<|user|>' if message['role'] == 'user' else '<|assistant|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] != 'user' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer: every word of the questions and answers is one token.

    Args:
        more: words to know besides those of the demo.

    Returns:
        A fast tokenizer with ``<image>`` and the chat marks as special tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys((*SPECIAL, *_WORDS, *COLOURS, *NUMBERS, *more))
    vocabulary = {word: number for number, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE, USER, ANSWER],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_processor() -> LlavaProcessor:
    """Build the processor: pictures as they are (scaled, normalised), chat template, tokenizer.

    Returns:
        A processor that expands one ``<image>`` into one token per quadrant.
    """
    import transformers

    # Since transformers 5 the plain name asks for torchvision; the Pillow one needs nothing.
    pillow = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    images = pillow(
        do_resize=False,
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=[IMAGE_MEAN] * 3,
        image_std=[IMAGE_STD] * 3,
        size={"height": CANVAS, "width": CANVAS},
        crop_size={"height": CANVAS, "width": CANVAS},
    )
    return build_chat_processor(images, build_tokenizer(), CELL)


def build_chat_processor(images: Any, tokenizer: Any, patch_size: int) -> LlavaProcessor:
    """Build the processor of a model with the demo's chat template.

    Args:
        images: processor of pictures.
        tokenizer: what `build_tokenizer` made.
        patch_size: pixels of an image token's edge.
    """
    from transformers import LlavaProcessor

    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=_CHAT,
    )


def _build_config() -> LlavaConfig:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    tokenizer = build_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=CANVAS,
        patch_size=CELL,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=number(END),
        pad_token_id=number(PAD),
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=number(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=number(PAD),
        eos_token_id=number(END),
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """Build the untrained model.

    CLIP starts its position and patch embeddings at 0.02; on 20 x 20 pictures that drowns where a
    patch is, and training sits on a plateau. Both start wider here.

    Args:
        seed: Seed of the initial weights; the global generator is left as it was.

    Returns:
        The model, in float32 on the CPU.
    """
    from transformers import LlavaForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(_build_config())
        embeddings = model.model.vision_tower.embeddings
        nn.init.normal_(embeddings.position_embedding.weight, std=0.3)
        nn.init.normal_(embeddings.patch_embedding.weight, std=0.05)
    return model.float()


def load_demo_model(weights: Path | None = None) -> LlavaForConditionalGeneration:
    """Load the model with the weights that ship with the package, or with others.

    Args:
        weights: Folder that `cmibq.demo.training.train` wrote; default: what ships.

    Returns:
        The model in evaluation mode.

    Raises:
        ModelError: If the weights are missing or are not those that the training record names.
    """
    from safetensors.torch import load

    weights = weights or WEIGHTS
    path, record = weights / "model.safetensors", weights / "training.json"
    for needed in (path, record):
        if not needed.exists():
            raise ModelError(
                f"{needed} is missing; reinstall cmibq or make it with `cmibq demo --train`"
            )
    content, expected = path.read_bytes(), read_json(record)["sha256"]
    found = sha256_bytes(content)
    if found != expected:
        raise ModelError(
            f"{path} has sha256 {found}, its training record says {expected}: it is damaged or "
            "was replaced; reinstall cmibq or make it anew with `cmibq demo --train`"
        )
    model = build_model(0)
    model.load_state_dict(load(content))
    return model.eval()


def write_model_dir(out: Path, *, planted: bool, weights: Path | None = None) -> Path:
    """Write an ordinary Hugging Face model folder with the weights and the processor.

    Args:
        out: Folder to write; made if it is missing.
        planted: Whether to plant outliers (seed 0) and write their factors next to the weights.
        weights: Folder that `cmibq.demo.training.train` wrote; default: what ships.

    Returns:
        The folder.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model = load_demo_model(weights)
    (out / PLANTED_FACTORS).unlink(missing_ok=True)
    if planted:
        write_json(out / PLANTED_FACTORS, plant_outliers_(model, seed=0))
    model.save_pretrained(out)
    build_processor().save_pretrained(out)
    shutil.copyfile((weights or WEIGHTS) / "training.json", out / "training.json")
    return out
