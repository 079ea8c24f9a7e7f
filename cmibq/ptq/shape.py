"""A model in numbers: what its layers take, from its configuration and the size of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cmibq.alloc.size import row_bytes
from cmibq.models import read_family, skeleton
from cmibq.recipe import QuantRecipe

__all__ = ["Shape", "read_shape"]


@dataclass(frozen=True)
class Shape:
    """A model in numbers.

    Args:
        file_bytes: size of its weights.
        itemsize: bytes of a weight.
        blocks: decoder blocks.
        block_params: parameters of one.
        hidden: width of hidden states.
        inner: outputs of the widest layer of a block.
        vocabulary: outputs of the head.
        tower: outputs of the widest layer outside the decoder and head; 0 without one.
        groups: (name, inputs, weights, whether a module is run) of each group of a block.
        others: inputs of linear layers of a block that are in no group.
        layers: (outputs, inputs) of the linear layers of a block.
    """

    file_bytes: int
    itemsize: int
    blocks: int
    block_params: int
    hidden: int
    inner: int
    vocabulary: int
    tower: int
    groups: tuple[tuple[str, int, int, bool], ...]
    others: tuple[int, ...]
    layers: tuple[tuple[int, int], ...]

    @property
    def model(self) -> int:
        """Bytes of the model in memory."""
        return self.file_bytes

    def packed(self, recipe: QuantRecipe) -> int:
        """Return the bytes of the layers of one block as packed."""
        bits, group = recipe.w_bit, recipe.group_size
        rows = ((n, row_bytes(k, bits, group, symmetric=recipe.symmetric)) for n, k in self.layers)
        return sum(n * size for n, size in rows)

    def rest(self) -> int:
        """Return the bytes of what is not quantised."""
        linear = sum(n * k for n, k in self.layers) * self.blocks
        return max(self.file_bytes - linear * self.itemsize, 0)


def read_shape(path: Path) -> Shape:
    """Return the numbers of a model folder.

    Raises:
        ModelError: it is no supported model.
    """
    adapter, model = read_family(path), skeleton(path)
    params = sum(p.numel() for p in model.parameters())
    size = sum(f.stat().st_size for f in path.glob("*.safetensors"))
    (name, block), *more = adapter.blocks(model)
    modules = {f"{name}.{n}": m for n, m in block.named_modules() if n}
    linears = {n: m for n, m in modules.items() if isinstance(m, nn.Linear)}
    groups = adapter.groups(name, block)
    grouped = {n for g in groups for n in g.linears}
    head = adapter.lm_head(model).get_parameter("weight")
    inside = f"{adapter.decoder_path}."
    tower = [
        m.out_features
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and not n.startswith(inside) and n != adapter.head_path
    ]
    return Shape(
        file_bytes=size,
        itemsize=max(round(size / max(params, 1)), 1),
        blocks=1 + len(more),
        block_params=sum(p.numel() for p in block.parameters()),
        hidden=head.shape[1],
        inner=max(m.out_features for m in linears.values()),
        vocabulary=head.shape[0],
        tower=max(tower, default=0),
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
