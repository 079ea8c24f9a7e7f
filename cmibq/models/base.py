"""What a model family is: its decoder blocks, the groups of linear layers to balance, its images.

An adapter is data: names and patterns that are looked up in the modules of a model, so that one
search serves all families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.models.composed_host import calm_of
from cmibq.models.rows import CLIP_ROWS, LLAMA_ROWS, GroupRow, groups_of, linears_of
from cmibq.recipe import parse_scope
from cmibq.registry import Registry
from cmibq.search import LinearGroup

__all__ = ["GRADIENT_OF", "LLAMA_ROWS", "MODELS", "Adapter", "GroupRow", "adapter_of", "positions"]

GRADIENT_OF = (("self_attn.o_proj", ("qkv", "o")), ("mlp.down_proj", ("gate_up", "down")))
"""Where MBQ takes gradients in blocks built like Llama's, and for which groups."""


def positions(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Return the positions of tokens if pads stand before them; otherwise the decoder counts.

    Args:
        model: not looked at.
        batch: `cmibq.data.Batch`.

    Returns:
        ``position_ids`` int64 [B, T], or nothing.
    """
    mask = batch.attention_mask
    if bool(mask[:, 0].all()):
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


@dataclass(frozen=True)
class Adapter:
    """A model family.

    Args:
        family: ``model_type`` of its configuration.
        decoders: ``model_type`` of the language models it is known to work with; the first is
            meant where a configuration does not say.
        decoder_path: name of the language model (without head) inside the model.
        head_path: name of the output layer.
        rows: table of groups.
        image_features: (model, what it takes for U images: ``pixel_values`` and its companions) ->
            features as they replace the embeddings of image tokens: U tensors [V_i, C], or one
            [U, V, C].
        gradient_of: name endings of the linear layers whose output gradients weigh modalities,
            by the groups that they speak for.
        layers: name of the list of blocks inside the decoder.
        norm: name of the norm after the last block inside the decoder.
        decoder_inputs: (model, batch) -> what the decoder takes beside embeddings and mask.
        padding: side on which the model's own code pads, ``"right"`` or ``"left"``.
        projectors: names that the module between tower and decoder may have in the model.
        towers: names that the list of vision blocks may have in the model.
        tower_rows: table of groups of a vision block.
    """

    family: str
    decoders: tuple[str, ...]
    decoder_path: str
    head_path: str
    rows: tuple[GroupRow, ...]
    image_features: Callable[[nn.Module, Mapping[str, Tensor]], Sequence[Tensor] | Tensor]
    gradient_of: tuple[tuple[str, tuple[str, ...]], ...]
    layers: str = "layers"
    norm: str = "norm"
    decoder_inputs: Callable[[nn.Module, Any], dict[str, Tensor]] = positions
    padding: str = "right"
    projectors: tuple[str, ...] = ("model.multi_modal_projector",)
    towers: tuple[str, ...] = (
        "model.vision_tower.encoder.layers",
        "model.vision_tower.vision_model.encoder.layers",
    )
    tower_rows: tuple[GroupRow, ...] = CLIP_ROWS

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the language model without its head."""
        return model.get_submodule(self.decoder_path)

    def lm_head(self, model: nn.Module) -> nn.Module:
        """Return the output layer."""
        return model.get_submodule(self.head_path)

    def image_token_id(self, model: nn.Module) -> int:
        """Return the id that stands for one image token; -1 where the model does not say."""
        hosted: Any = model
        return int(getattr(hosted.config, "image_token_id", -1))

    def _part(self, model: nn.Module, names: Sequence[str], what: str) -> tuple[str, nn.Module]:
        for name in names:
            try:
                return name, model.get_submodule(name)
            except AttributeError:
                continue
        raise ModelError(
            f"the model has no {what} at {' or '.join(names)}; leave it out of scope, or give the"
            f" family {self.family!r} an adapter that knows it"
        )

    def projector(self, model: nn.Module) -> nn.Module:
        """Return the module between tower and decoder, or what holds it if it is one layer.

        Raises:
            ModelError: it is not where the family has it.
        """
        path, module = self._part(model, self.projectors, "projector")
        return model.get_submodule(path.rpartition(".")[0]) if _is_linear(module) else module

    def blocks(self, model: nn.Module, scope: str = "lm") -> list[tuple[str, nn.Module]]:
        """Return (name in the model, block) of blocks, in order: of the decoder, then vision ones.

        A composed tower has none: its layers are not called one after the other.

        Args:
            model: the model.
            scope: parts whose blocks are wanted, for example ``"lm,vision"``.

        Raises:
            ConfigError: `scope` has an unknown part.
            ModelError: a part is not where the family has it.
        """
        paths, parts = [], parse_scope(scope)
        if "lm" in parts:
            paths.append(f"{self.decoder_path}.{self.layers}")
        if "vision" in parts and calm_of(model) is None:
            paths.append(self._part(model, self.towers, "vision blocks")[0])
        return [
            (f"{path}.{n}", m)
            for path in paths
            for n, m in model.get_submodule(path).named_children()
        ]

    def numbered(self, model: nn.Module, scope: str = "lm") -> list[tuple[int, str, nn.Module]]:
        """Return (number, name, block) of blocks; vision blocks count on from the decoder's."""
        parts, before = parse_scope(scope), len(self.blocks(model))
        made = []
        for part, start in (("lm", 0), ("vision", before)):
            if part in parts:
                made += [(start + i, *b) for i, b in enumerate(self.blocks(model, part))]
        return made

    def rows_of(self, block_name: str) -> tuple[GroupRow, ...]:
        """Return the table of groups of a block, by its name in the model."""
        vision = any(block_name.startswith(f"{tower}.") for tower in self.towers)
        return self.tower_rows if vision else self.rows

    def groups(
        self, block_name: str, block: nn.Module, *, published: bool = False
    ) -> list[LinearGroup]:
        """Return the groups of a block, named as in the model.

        A group behind a linear layer is left out where scales cannot pass between them. With
        grouped keys and values one value channel feeds several channels of o_proj: these then
        share a scale (`LinearGroup.values`).

        Args:
            block_name: name of the block in the model; tells decoder from vision blocks.
            block: the block.
            published: leave out groups that the published methods do not scale (o_proj behind
                grouped values).

        Raises:
            ModelError: a module of the table is missing.
        """
        rows = self.rows_of(block_name)
        return groups_of(rows, block_name, block, published=published, family=self.family)

    def targets(self, model: nn.Module, scope: str = "lm") -> list[str]:
        """Return the names of the linear layers to quantise.

        Of a composed tower these are the layers of both towers and of settled fusions.

        Args:
            model: the model.
            scope: parts: ``lm`` all linear layers in the decoder blocks, ``projector`` those
                between tower and decoder, ``vision`` those in the vision blocks.

        Raises:
            ConfigError: `scope` has an unknown part.
            ModelError: a part is not where the family has it.
        """
        found: list[tuple[str, nn.Module]] = []
        for part in parse_scope(scope):
            if part == "vision" and (tower := calm_of(model)) is not None:
                found.append((next(n for n, m in model.named_modules() if m is tower), tower))
            elif part == "projector":
                found.append(self._part(model, self.projectors, "projector"))
            else:
                found += self.blocks(model, part)
        names = []
        for path, module in found:
            whole = [path] if _is_linear(module) else []
            names += whole or [f"{path}.{n}" for n in linears_of(module)]
        return names

    def embed(
        self, model: nn.Module, batch: Any, features: Sequence[Tensor] | Tensor | None = None
    ) -> Tensor:
        """Return the decoder's input embeddings of a batch, images in place.

        Args:
            model: the model.
            batch: `cmibq.data.Batch`.
            features: `image_features` of the batch's images if they are known already.

        Returns:
            [B, T, C] in the dtype of the embeddings.

        Raises:
            ModelError: the batch has another number of image tokens than features.
        """
        hosted: Any = model
        ids = batch.input_ids.masked_fill(batch.vision_mask, 0)  # some ids are no row of the table
        embeds: Tensor = hosted.get_input_embeddings()(ids)
        if features is None and batch.image_inputs:
            features = self.image_features(model, batch.joined)
        if features is None or not len(batch.image_index):
            return embeds
        rows = torch.cat([features[i] for i in batch.image_index.tolist()]).to(embeds.dtype)
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
