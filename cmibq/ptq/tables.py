"""The two large tables around the decoder, the embedding and the output layer, as codes."""

from __future__ import annotations

from typing import Any

from torch import nn

from cmibq.errors import ModelError
from cmibq.models import LoadedModel
from cmibq.nn import PackedLinear, convert_
from cmibq.quant import PerChannel, PerGroup, QuantSpec
from cmibq.recipe import QuantRecipe

__all__ = ["pack_tables_", "table_specs"]


def _spec(recipe: QuantRecipe, bits: int) -> QuantSpec:
    """Return how a table is rounded: 8 bits are symmetric, which leaves all formats open."""
    group = recipe.group_size
    rows = PerGroup(group) if group > 0 else PerChannel(0)
    return QuantSpec(bits, rows, symmetric=bits == 8 or recipe.symmetric)


def _name_of(model: nn.Module, module: nn.Module) -> str:
    names: dict[int, str] = {id(found): name for name, found in model.named_modules()}
    return names[id(module)]


def table_specs(recipe: QuantRecipe, loaded: LoadedModel) -> dict[str, QuantSpec]:
    """Return how the embedding and the output layer are packed, by name; without those left float.

    Raises:
        ModelError: only one of two tables that are one is to be packed.
    """
    model: Any = loaded.model
    table, head = model.get_input_embeddings(), loaded.adapter.lm_head(model)
    if getattr(head, "weight", None) is table.weight and recipe.embed_bit != recipe.head_bit:
        raise ModelError(
            f"embedding and output layer are one table, but embed_bit is {recipe.embed_bit} and"
            f" head_bit {recipe.head_bit}; give both the same"
        )
    bits = {_name_of(model, table): recipe.embed_bit, loaded.adapter.head_path: recipe.head_bit}
    return {name: _spec(recipe, b) for name, b in bits.items() if b < 16}


def pack_tables_(recipe: QuantRecipe, loaded: LoadedModel) -> None:
    """Pack the embedding and the output layer as ``embed_bit`` and ``head_bit`` ask for.

    Where both are one table and get the same bits, they share their codes, in files too. The model
    then no longer says that their float weights are tied, which are gone.

    Args:
        recipe: what to do.
        loaded: the model; changed.

    Raises:
        ModelError: only one of two tables that are one is to be packed, or the group size does not
            divide their rows.
    """
    model: Any = loaded.model
    table, head = model.get_input_embeddings(), loaded.adapter.lm_head(model)
    tied = getattr(head, "weight", None) is table.weight
    names = _name_of(model, table), loaded.adapter.head_path
    targets = table_specs(recipe, loaded)
    if not targets:
        return
    convert_(model, targets)
    for part in (model.config, getattr(model.config, "text_config", None)):
        if part is not None and getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False
    rows, out = (model.get_submodule(name) for name in names)
    if tied and isinstance(rows, PackedLinear) and isinstance(out, PackedLinear):
        for name in ("qweight", "scales", "zeros"):
            rows._buffers[name] = out._buffers[name]
