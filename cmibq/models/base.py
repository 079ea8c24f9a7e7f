"""What a model family is: its decoder blocks, the groups of linear layers to balance, its images.

An adapter is data: names and patterns that are looked up in the modules of a model, so that one
search serves all families.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.registry import Registry
from cmibq.search import LinearGroup

__all__ = [
    "LLAMA_ROWS",
    "MODELS",
    "Adapter",
    "GroupRow",
    "adapter_of",
    "check_groups",
    "check_weights",
]


@dataclass(frozen=True)
class GroupRow:
    """One row of a family's table: linear layers that share an input. Names are inside a block.

    Args:
        name: ``qkv``, ``o``, ``gate_up`` or ``down``.
        prev: module that absorbs the scales.
        prev_kind: ``"norm"`` or ``"linear"``.
        linears: pattern that the names of the linear layers match as a whole.
        inspect: module whose output is compared; empty = the linear layer itself. It reads its
            input only through the linear layers of the group.
    """

    name: str
    prev: str
    prev_kind: str
    linears: str
    inspect: str = ""


LLAMA_ROWS = (
    GroupRow("qkv", "input_layernorm", "norm", r"self_attn\.[qkv]_proj", "self_attn"),
    GroupRow("o", "self_attn.v_proj", "linear", r"self_attn\.o_proj"),
    GroupRow("gate_up", "post_attention_layernorm", "norm", r"mlp\.(gate|up)_proj", "mlp"),
    GroupRow("down", "mlp.up_proj", "linear", r"mlp\.down_proj"),
)
"""Decoder blocks built like Llama's: Llama, Mistral, Qwen2."""


def _linears(block: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}


@dataclass(frozen=True)
class Adapter:
    """A model family.

    Args:
        family: ``model_type`` of its configuration.
        decoders: ``model_type`` of the language models it is known to work with.
        decoder_path: name of the language model (without head) inside the model.
        head_path: name of the output layer.
        rows: table of groups.
        image_features: (model, pixel_values [U, 3, H, W]) -> features [U, V, C] as they replace
            the embeddings of image tokens.
        gradient_of: name endings of the linear layers whose output gradients weigh modalities,
            by the groups that they speak for.
        layers: name of the list of blocks inside the decoder.
        norm: name of the norm after the last block inside the decoder.
    """

    family: str
    decoders: tuple[str, ...]
    decoder_path: str
    head_path: str
    rows: tuple[GroupRow, ...]
    image_features: Callable[[nn.Module, Tensor], Tensor]
    gradient_of: tuple[tuple[str, tuple[str, ...]], ...]
    layers: str = "layers"
    norm: str = "norm"

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the language model without its head."""
        return model.get_submodule(self.decoder_path)

    def lm_head(self, model: nn.Module) -> nn.Module:
        """Return the output layer."""
        return model.get_submodule(self.head_path)

    def image_token_id(self, model: nn.Module) -> int:
        """Return the id that stands for one image token."""
        hosted: Any = model
        return int(hosted.config.image_token_id)

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return (name in the model, block) of every decoder block, in order."""
        path = f"{self.decoder_path}.{self.layers}"
        return [(f"{path}.{n}", m) for n, m in model.get_submodule(path).named_children()]

    def groups(self, block_name: str, block: nn.Module) -> list[LinearGroup]:
        """Return the groups of a block, named as in the model.

        A group behind a linear layer is left out where scales cannot pass between them: with
        grouped keys and values one value channel feeds several channels of o_proj.

        Raises:
            ModelError: a module of the table is missing.
        """
        linears, modules = _linears(block), dict(block.named_modules())
        made = []
        for row in self.rows:
            names = [n for n in linears if re.fullmatch(row.linears, n)]
            if not names or row.prev not in modules or row.inspect not in modules:
                raise ModelError(
                    f"{block_name}: no {row.linears!r} behind {row.prev!r}; is this model really of"
                    f" family {self.family!r}?"
                )
            if row.prev_kind == "linear":
                prev = linears.get(row.prev)
                if prev is None or prev.out_features != linears[names[0]].in_features:
                    continue
            made.append(
                LinearGroup(
                    row.name,
                    f"{block_name}.{row.prev}",
                    row.prev_kind,
                    tuple(f"{block_name}.{n}" for n in names),
                    f"{block_name}.{row.inspect or names[0]}",
                )
            )
        return made

    def targets(self, model: nn.Module) -> list[str]:
        """Return the names of all linear layers in the decoder blocks: what is quantised."""
        return [f"{name}.{n}" for name, block in self.blocks(model) for n in _linears(block)]

    def embed(self, model: nn.Module, batch: Any, features: Tensor | None = None) -> Tensor:
        """Return the decoder's input embeddings of a batch, images in place.

        Args:
            model: the model.
            batch: `cmibq.data.Batch`.
            features: [U, V, C], `image_features` of the batch if they are known already.

        Returns:
            [B, T, C] in the dtype of the embeddings.

        Raises:
            ModelError: the batch has another number of image tokens than features.
        """
        hosted: Any = model
        embeds: Tensor = hosted.get_input_embeddings()(batch.input_ids)
        if features is None and batch.pixel_values is not None:
            features = self.image_features(model, batch.pixel_values)
        if features is None or not len(batch.image_index):
            return embeds
        rows = features[batch.image_index].flatten(0, 1).to(embeds.dtype)
        if len(rows) != int(batch.vision_mask.sum()):
            raise ModelError(
                f"the images give {len(rows)} features for {int(batch.vision_mask.sum())} image"
                " tokens; processor and model do not belong together (patch_size,"
                " vision_feature_select_strategy)"
            )
        return embeds.masked_scatter(batch.vision_mask.unsqueeze(-1), rows)


MODELS: Registry[Adapter] = Registry("model family")
"""``model_type`` -> adapter."""


def adapter_of(model: nn.Module) -> Adapter:
    """Return the adapter of a model by its configuration.

    Raises:
        ModelError: the family is not supported.
    """
    family = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if family not in MODELS:
        raise ModelError(
            f"model family {family!r} is not supported; supported are {', '.join(MODELS)}"
        )
    return MODELS[family]


def check_groups(widths: Mapping[str, int], group_size: int) -> None:
    """Check that a group size divides the inputs of linear layers.

    Args:
        widths: layer -> number of inputs.
        group_size: weights per scale along the input; <= 0 is one scale per row.

    Raises:
        ModelError: it does not divide; names the layer and offers sizes that divide all.

    Example:
        >>> check_groups({"q_proj": 96, "down_proj": 64}, 48)
        Traceback (most recent call last):
        ...
        cmibq.errors.ModelError: down_proj: w_group 48 does not divide its 64 inputs; choose one of
        8, 16, 32, or -1 for one scale per row
    """
    for name, width in widths.items():
        if group_size > 0 and width % group_size:
            common = math.gcd(*widths.values())
            fits = ", ".join(str(g) for g in range(8, common + 1, 8) if common % g == 0)
            raise ModelError(
                f"{name}: w_group {group_size} does not divide its {width} inputs; choose one of"
                f" {fits or '(none)'}, or -1 for one scale per row"
            )


@torch.no_grad()
def check_weights(model: nn.Module, names: Iterable[str]) -> None:
    """Check that the weights of linear layers are finite, before anything slow is done.

    Raises:
        ModelError: a weight has NaN or infinity; names the layer.
    """
    for name in names:
        weight = model.get_parameter(f"{name}.weight")
        ends = torch.aminmax(weight)
        if not (torch.isfinite(ends.min) and torch.isfinite(ends.max)):
            bad = int((~torch.isfinite(weight)).sum())
            raise ModelError(
                f"{name}: {bad} of {weight.numel()} weights are NaN or infinite; check the"
                " checkpoint"
            )
