"""A model in numbers: what its layers take, from its configuration and the size of its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cmibq.alloc.size import row_bytes
from cmibq.errors import ModelError
from cmibq.models import Adapter, calm_of, fitting_group, read_family, settle_, skeleton
from cmibq.recipe import QuantRecipe, parse_scope, parse_size

__all__ = ["Part", "Shape", "read_shape"]

Layer = tuple[int, int]
"""Outputs and inputs of a linear layer."""


@dataclass(frozen=True)
class Part:
    """The blocks of the decoder, or of the vision tower, in numbers.

    Args:
        blocks: how many.
        params: parameters of one.
        hidden: width of hidden states.
        inner: outputs of the widest layer of a block.
        groups: (name, inputs, weights, whether a module is run) of each group of a block.
        others: inputs of linear layers of a block that are in no group.
        layers: (outputs, inputs) of the linear layers of a block.
    """

    blocks: int
    params: int
    hidden: int
    inner: int
    groups: tuple[tuple[str, int, int, bool], ...]
    others: tuple[int, ...]
    layers: tuple[Layer, ...]


def _read_part(adapter: Adapter, model: nn.Module, scope: str) -> Part:
    (name, block), *more = adapter.blocks(model, scope)
    modules = {f"{name}.{n}": m for n, m in block.named_modules() if n}
    linears = {n: m for n, m in modules.items() if isinstance(m, nn.Linear)}
    groups = adapter.groups(name, block)
    grouped = {n for g in groups for n in g.linears}
    return Part(
        blocks=1 + len(more),
        params=sum(p.numel() for p in block.parameters()),
        hidden=next(iter(linears.values())).in_features,
        inner=max(m.out_features for m in linears.values()),
        groups=tuple(
            (
                g.name,
                linears[g.linears[0]].in_features,
                sum(linears[n].weight.numel() for n in g.linears),
                g.inspect not in g.linears,
            )
            for g in groups
        ),
        others=tuple(m.in_features for n, m in linears.items() if n not in grouped),
        layers=tuple((m.out_features, m.in_features) for m in linears.values()),
    )


@dataclass(frozen=True)
class Shape:
    """A model in numbers.

    Args:
        file_bytes: size of its weights.
        itemsize: bytes of a weight.
        lm: the decoder.
        vision: the blocks of the vision tower; None without.
        projector: its linear layers.
        composed: linear layers of a composed tower, which has no blocks.
        embedding: rows and columns of the token embedding.
        tied: whether the output layer is the embedding.
        tower: outputs of the widest layer outside the decoder and head; 0 without one.
        patch: pixels of a side of what the tower takes as one token.
    """

    file_bytes: int
    itemsize: int
    lm: Part
    vision: Part | None
    projector: tuple[Layer, ...]
    composed: tuple[Layer, ...]
    embedding: Layer
    tied: bool
    tower: int
    patch: int

    @property
    def model(self) -> int:
        """Bytes of the model in memory."""
        return self.file_bytes

    @property
    def vocabulary(self) -> int:
        """Outputs of the head."""
        return self.embedding[0]

    def parts(self, recipe: QuantRecipe) -> list[Part]:
        """Return the parts with blocks in the scope of a recipe."""
        found = {"lm": self.lm, "vision": self.vision}
        named = (found.get(name) for name in parse_scope(recipe.scope))
        return [part for part in named if part is not None]

    def layers(self, recipe: QuantRecipe) -> list[Layer]:
        """Return all linear layers in the scope of a recipe."""
        made = [layer for part in self.parts(recipe) for layer in part.layers * part.blocks]
        made += [*self.composed] * ("vision" in parse_scope(recipe.scope))
        return made + [*self.projector] * ("projector" in parse_scope(recipe.scope))

    def tables(self, recipe: QuantRecipe) -> list[tuple[int, Layer]]:
        """Return bits and size of the embedding and the output layer, as far as they are packed."""
        bits = [recipe.embed_bit] if self.tied else [recipe.embed_bit, recipe.head_bit]
        return [(b, self.embedding) for b in bits if b < 16]

    def packed(self, recipe: QuantRecipe, layers: Sequence[Layer] | None = None) -> int:
        """Return the bytes of layers as packed, with those tables that are; all in scope if None.

        With ``max_bytes`` that is what they may have.
        """
        bits, made = recipe.w_bit, self.layers(recipe) if layers is None else layers
        if recipe.max_bytes and layers is None:
            most = max(parse_size("max_bytes", recipe.max_bytes) - self.rest(recipe), 0)
            return min(most, self._bytes(recipe, 8, made))
        return self._bytes(recipe, bits, made)

    def _bytes(self, recipe: QuantRecipe, bits: int, layers: Sequence[Layer]) -> int:
        every = [(bits, layer, recipe.symmetric) for layer in layers]
        every += [(b, t, b == 8 or recipe.symmetric) for b, t in self.tables(recipe)]
        return sum(
            n * row_bytes(k, b, fitting_group(k, recipe.group_size), symmetric=symmetric)
            for b, (n, k), symmetric in every
        )

    def rest(self, recipe: QuantRecipe) -> int:
        """Return the bytes of what is not quantised."""
        gone = sum(n * k for n, k in self.layers(recipe))
        gone += sum(n * k for _, (n, k) in self.tables(recipe))
        return max(self.file_bytes - gone * self.itemsize, 0)


def read_shape(path: Path) -> Shape:
    """Return the numbers of a model folder.

    Raises:
        ModelError: it is no supported model.
    """
    adapter, model = read_family(path), settle_(skeleton(path))
    params = sum(p.numel() for p in model.parameters())
    size = sum(f.stat().st_size for f in path.glob("*.safetensors"))
    head = adapter.lm_head(model).get_parameter("weight")
    hosted: Any = model
    inside = f"{adapter.decoder_path}."
    tower = [
        m.out_features
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and not n.startswith(inside) and n != adapter.head_path
    ]
    composed = adapter.targets(model, "vision") if calm_of(model) is not None else []
    try:
        vision = None if composed else _read_part(adapter, model, "vision")
        between = adapter.targets(model, "projector")
    except ModelError:  # a family of which only the decoder can be quantised
        vision, between = None, []
    sizes = {n: model.get_parameter(f"{n}.weight").shape for n in (*between, *composed)}
    return Shape(
        file_bytes=size,
        itemsize=max(round(size / max(params, 1)), 1),
        lm=_read_part(adapter, model, "lm"),
        vision=vision,
        projector=tuple((sizes[n][0], sizes[n][1]) for n in between),
        composed=tuple((sizes[n][0], sizes[n][1]) for n in composed),
        embedding=(head.shape[0], head.shape[1]),
        tied=head is hosted.get_input_embeddings().weight,
        tower=max(tower, default=0),
        patch=int(getattr(getattr(hosted.config, "vision_config", None), "patch_size", 14)),
    )
