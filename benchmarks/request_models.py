"""The models of `benchmarks/request.py`: LLaVA with random weights of 1B and 7B shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "IMAGE",
    "SHAPES",
    "Shape",
    "inputs",
    "skeleton",
    "write_package",
    "zeros_like_bf16",
]

GROUP = 128
IMAGE = 576
"""Tokens of an image: 336 x 336 pixels in patches of 14."""
TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
"""CLIP ViT-L/14-336."""


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's kind.

    Args:
        hidden: width.
        inner: of the MLP.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key and value heads.
        vocab: tokens.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def kv(self) -> int:
        """Outputs of k and of v."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def linear_weights(self) -> int:
        """Weights of the decoder layers."""
        attention = 2 * self.hidden * (self.hidden + self.kv)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    def token_bytes(self, bits: float, head_bits: float) -> float:
        """Return the bytes of weights that one new token must read."""
        head = self.hidden * self.vocab * head_bits / 8
        return self.linear_weights * bits / 8 + head


SHAPES = {
    "tiny": Shape(256, 512, 2, 4, 2, 1024),
    "1b": Shape(2048, 5632, 22, 32, 4, 32064),
    "7b": Shape(4096, 11008, 32, 32, 32, 32064),
}
"""The decoders of TinyLlama 1.1B and of Llama 2 7B (LLaVA 1.5); `tiny` is for trying the script."""


def config(shape: Shape, layers: int | None = None) -> Any:
    """Return the LLaVA configuration, with fewer decoder layers if asked for."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers if layers is None else layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    made = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=text,
        image_token_id=shape.vocab - 1,
        image_seq_length=IMAGE,
        tie_word_embeddings=False,
    )
    made.dtype = torch.bfloat16
    return made


def skeleton(shape: Shape, layers: int | None = None) -> Any:
    """Return the model on the ``meta`` device, in bfloat16."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        made = LlavaForConditionalGeneration(config(shape, layers))
    return made.to(torch.bfloat16).eval().requires_grad_(False)


def _fill(model: Any, seed: int) -> None:
    """Give every parameter on ``meta`` random values, and buffers those of a new model."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in list(model.named_parameters()):
        module = model.get_submodule(name.rpartition(".")[0])
        new = torch.empty(value.shape, dtype=torch.bfloat16)
        new.uniform_(-0.035, 0.035, generator=generator)
        if "norm" in name and name.endswith("weight"):
            new.fill_(1)
        module._parameters[name.rpartition(".")[2]] = torch.nn.Parameter(new, requires_grad=False)
    fresh = {"inv_freq", "original_inv_freq", "position_ids"}
    for name, value in list(model.named_buffers()):
        module, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if value.is_meta and leaf in fresh:
            module._buffers[leaf] = _buffer(module, leaf)


def _buffer(module: Any, leaf: str) -> torch.Tensor:
    if leaf == "position_ids":
        return torch.arange(module.position_ids.shape[-1])[None]
    values: torch.Tensor = module.compute_default_rope_parameters(module.config)[0]
    return values


def zeros_like_bf16(shape: Shape, layers: int | None = None) -> Any:
    """Return the model in bfloat16 with random weights, as a user without cmibq has it."""
    made = skeleton(shape, layers)
    _fill(made, 0)
    return made


def _random_layer(layer: Any, generator: torch.Generator) -> None:
    """Give a packed layer on ``meta`` random codes; weights have a deviation of about 0.02."""
    step = 0.07 / (1 << layer._tiling.bits)
    for name, value in list(layer._buffers.items()):
        if value is None:
            continue
        if value.dtype == torch.uint8:
            new = torch.empty(value.shape, dtype=torch.uint8).random_(0, 256, generator=generator)
        elif name == "scales":
            new = torch.full(value.shape, step, dtype=torch.float16)
        else:
            new = torch.zeros(value.shape, dtype=value.dtype)
        layer._buffers[name] = new


def write_package(shape: Shape, folder: Path) -> None:
    """Write a package of random weights, 4 bits in all layers and 8 elsewhere; never in float.

    Args:
        shape: of the decoder.
        folder: to make.
    """
    from torch import nn

    from cmibq import io
    from cmibq.io.manifest import LayerSpec
    from cmibq.io.restore import packed_like

    model, generator = skeleton(shape), torch.Generator().manual_seed(1)
    for name, old in list(model.named_modules()):
        if not isinstance(old, nn.Linear | nn.Embedding) or "position_embedding" in name:
            continue
        outs, cols = old.weight.shape
        bits = 4 if ".layers." in name else 8
        table = isinstance(old, nn.Embedding)
        biased = not table and old.bias is not None
        spec = LayerSpec((outs, cols), bits, GROUP, True, 16 if table else 8, biased)
        new = packed_like(spec, old)
        _random_layer(new, generator)
        model.set_submodule(name, new)
    _fill(model, 2)
    io.save(model, folder.parent, folder, recipe={"random": True})


def inputs(shape: Shape, tokens: int, *, image: bool) -> dict[str, torch.Tensor]:
    """Return what ``generate`` takes: `tokens` tokens, an image among them if asked for."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, shape.vocab - 1, (1, tokens), generator=generator)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if image:
        ids[0, 4 : 4 + IMAGE] = shape.vocab - 1
        pixels = torch.randn(1, 3, 336, 336, generator=generator)
        found["pixel_values"] = pixels.to(torch.bfloat16)
    return found
