"""Layouts that live in other packages: the original LLaVA, and InternVL2's remote code.

Nothing of these packages is imported. Who has such a model in memory, opened by its own code, makes
a `LoadedModel` of it with one of these adapters and a `HostProcessor`, and passes it to
`cmibq.ptq.quantize_`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.models.base import GRADIENT_OF, LLAMA_ROWS, MODELS, Adapter
from cmibq.models.rows import INTERNLM2_ROWS, INTERNVIT_ROWS

__all__ = ["INTERNVL2", "INTERNVL2_LLAMA", "LLAVA_LLAMA", "HostProcessor", "internvl2_adapter"]


def llava_features(model: nn.Module, images: Mapping[str, Tensor]) -> Tensor:
    """Return the projected features [U, V, C] of the original LLaVA; an image is not cut up.

    Raises:
        ModelError: the model cuts images into tiles.
    """
    hosted: Any = model
    merge = getattr(hosted.config, "mm_patch_merge_type", "flat") or "flat"
    if merge != "flat" or images["pixel_values"].ndim != 4:
        raise ModelError(
            f"mm_patch_merge_type is {merge!r}; the original layout is known with 'flat' (LLaVA"
            " 1.5) alone, use the Hugging Face layout (llava_next) for tiles"
        )
    found: Tensor = hosted.encode_images(images["pixel_values"].to(hosted.dtype))
    return found


def internvl2_features(model: nn.Module, images: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the projected features [V_i, C] of InternVL2's images, tiles in order."""
    hosted: Any = model
    tiles: Tensor = hosted.extract_feature(images["pixel_values"].to(hosted.dtype))
    return [some.flatten(0, 1) for some in tiles.split(images["num_patches"].tolist())]


LLAVA_LLAMA = Adapter(
    family="llava_llama",
    decoders=("llama",),
    decoder_path="model",
    head_path="lm_head",
    rows=LLAMA_ROWS,
    image_features=llava_features,
    gradient_of=GRADIENT_OF,
    projectors=("model.mm_projector",),
    towers=(
        "model.vision_tower.vision_tower.vision_model.encoder.layers",
        "model.vision_tower.vision_tower.encoder.layers",
    ),
)
"""haotian-liu/LLaVA: `LlavaLlamaForCausalLM`."""

INTERNVL2 = Adapter(
    family="internvl2",
    decoders=("internlm2",),
    decoder_path="language_model.model",
    head_path="language_model.output",
    rows=INTERNLM2_ROWS,
    image_features=internvl2_features,
    gradient_of=(
        ("attention.wo", ("qkv", "o")),
        ("feed_forward.w2", ("gate_up", "down")),
    ),
    projectors=("mlp1",),
    towers=("vision_model.encoder.layers",),
    tower_rows=INTERNVIT_ROWS,
)
"""InternVL2 (`InternVLChatModel`) with an InternLM2 decoder."""

INTERNVL2_LLAMA = replace(
    INTERNVL2,
    family="internvl2_llama",
    decoders=("llama", "qwen2"),
    head_path="language_model.lm_head",
    rows=LLAMA_ROWS,
    gradient_of=GRADIENT_OF,
)
"""InternVL2 with a Llama or Qwen2 decoder (1B, 40B, 76B)."""

for _adapter in (LLAVA_LLAMA, INTERNVL2, INTERNVL2_LLAMA):
    MODELS.register(_adapter.family)(_adapter)


def internvl2_adapter(model: nn.Module) -> Adapter:
    """Return the adapter of an InternVL2 model by its decoder.

    Raises:
        ModelError: the decoder is another.
    """
    hosted: Any = model
    decoder = str(hosted.config.llm_config.model_type)
    for adapter in (INTERNVL2, INTERNVL2_LLAMA):
        if decoder in adapter.decoders:
            return adapter
    known = ", ".join((*INTERNVL2.decoders, *INTERNVL2_LLAMA.decoders))
    raise ModelError(f"InternVL2 with decoder {decoder!r} is not supported; supported are {known}")


class _Tokenizer:
    """A tokenizer that writes one id, which may be no token, for every image mark."""

    def __init__(self, inner: Any, mark: str, image_id: int) -> None:
        self._inner, self._mark, self._image_id = inner, mark, image_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(
        self, texts: str | Sequence[str], *, add_special_tokens: bool = True
    ) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": self._ids(texts, add_special_tokens)}
        return {"input_ids": [self._ids(text, add_special_tokens) for text in texts]}

    def _ids(self, text: str, special: bool) -> list[int]:
        made: list[int] = []
        for number, part in enumerate(text.split(self._mark)):
            if number:
                made.append(self._image_id)
            first = special and not number
            if part or first:
                ids = self._inner(part, add_special_tokens=special)["input_ids"]
                begin = self._inner.bos_token_id
                drop = special and not first and begin is not None and ids[:1] == [begin]
                made += list(ids[drop:])
        return made


@dataclass(frozen=True, eq=False)
class HostProcessor:
    """What `cmibq.data` wants of a processor, for models that come without one.

    Args:
        inner: tokenizer; a chat template that it has is used.
        prepare: image (PIL) -> pixels [tiles, 3, H, W] as the model takes them.
        tokens: image tokens of a tile.
        image_token: mark of an image in a text.
        image_token_id: id of an image token; may be none of the vocabulary (LLaVA: -200).
        before: ids in front of the tokens of an image.
        after: ids behind them.

    Example:
        >>> class Words:
        ...     bos_token_id = None
        ...     def __call__(self, text, add_special_tokens=True):
        ...         return {"input_ids": [len(w) for w in text.split()]}
        >>> tool = HostProcessor(Words(), lambda image: torch.zeros(1, 3, 2, 2), tokens=2)
        >>> tool.tokenizer("see <image> here")["input_ids"]
        [3, -200, 4]
        >>> tool(text=["<image>"], images=[None])["input_ids"].tolist()
        [[-200, -200]]
    """

    inner: Any
    prepare: Callable[[Any], Tensor]
    tokens: int
    image_token: str = "<image>"
    image_token_id: int = -200
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer, image marks understood."""
        return _Tokenizer(self.inner, self.image_token, self.image_token_id)

    @property
    def image_processor(self) -> Any:
        """Return what says that images are processed one by one."""
        return self

    def __call__(self, *, text: Sequence[str], images: Sequence[Any], **_: Any) -> dict[str, Any]:
        """Return pixels and the ids that stand for them."""
        tiles = [self.prepare(image) for image in images]
        ids: list[int] = []
        for one in tiles:
            ids += [*self.before, *[self.image_token_id] * (self.tokens * len(one)), *self.after]
        return {"input_ids": torch.tensor([ids]), "pixel_values": torch.cat(tiles)}
