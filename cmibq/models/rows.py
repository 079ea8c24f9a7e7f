"""Tables of linear layers that share an input, one per make of block."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from cmibq.errors import ModelError
from cmibq.search import LinearGroup, ValueHeads

__all__ = [
    "CLIP_ROWS",
    "INTERNLM2_ROWS",
    "INTERNVIT_ROWS",
    "INTERNVL_VISION_ROWS",
    "LLAMA_ROWS",
    "QWEN2_5_VISION_ROWS",
    "QWEN2_VISION_ROWS",
    "GroupRow",
    "groups_of",
    "linears_of",
]


@dataclass(frozen=True)
class GroupRow:
    """One row of a family's table: linear layers that share an input. Names are inside a block.

    Args:
        name: ``qkv``, ``o``, ``gate_up``, ``down`` or ``fc1``.
        prev: module that absorbs the scales.
        prev_kind: ``"norm"`` or ``"linear"``.
        linears: pattern that the names of the linear layers match as a whole.
        inspect: module whose output is compared; empty = the linear layer itself. It reads its
            input only through the linear layers of the group.
        fused: how a `prev` that makes more than values orders its rows: ``""`` it makes values
            alone, ``"tail"`` values last (q, k, v), ``"heads"`` queries, key and value head by head
            (InternLM2).
    """

    name: str
    prev: str
    prev_kind: str
    linears: str
    inspect: str = ""
    fused: str = ""


LLAMA_ROWS = (
    GroupRow("qkv", "input_layernorm", "norm", r"self_attn\.[qkv]_proj", "self_attn"),
    GroupRow("o", "self_attn.v_proj", "linear", r"self_attn\.o_proj"),
    GroupRow("gate_up", "post_attention_layernorm", "norm", r"mlp\.(gate|up)_proj", "mlp"),
    GroupRow("down", "mlp.up_proj", "linear", r"mlp\.down_proj"),
)
"""Decoder blocks built like Llama's: Llama, Mistral, Qwen2, Qwen3."""

INTERNLM2_ROWS = (
    GroupRow("qkv", "attention_norm", "norm", r"attention\.wqkv", "attention"),
    GroupRow("o", "attention.wqkv", "linear", r"attention\.wo", fused="heads"),
    GroupRow("gate_up", "ffn_norm", "norm", r"feed_forward\.w[13]", "feed_forward"),
    GroupRow("down", "feed_forward.w3", "linear", r"feed_forward\.w2"),
)
"""Decoder blocks of InternLM2: one layer makes queries, keys and values."""

CLIP_ROWS = (
    GroupRow("qkv", "layer_norm1", "norm", r"self_attn\.[qkv]_proj", "self_attn"),
    GroupRow("o", "self_attn.v_proj", "linear", r"self_attn\.out_proj"),
    GroupRow("fc1", "layer_norm2", "norm", r"mlp\.fc1", "mlp"),
)
"""Vision blocks of CLIP and SigLIP. Between fc1 and fc2 is a GELU: no scale passes."""

QWEN2_VISION_ROWS = (
    GroupRow("qkv", "norm1", "norm", r"attn\.qkv", "attn"),
    GroupRow("o", "attn.qkv", "linear", r"attn\.proj", fused="tail"),
    GroupRow("fc1", "norm2", "norm", r"mlp\.fc1", "mlp"),
)
"""Vision blocks of Qwen2-VL."""

QWEN2_5_VISION_ROWS = (
    *QWEN2_VISION_ROWS[:2],
    GroupRow("gate_up", "norm2", "norm", r"mlp\.(gate|up)_proj", "mlp"),
    GroupRow("down", "mlp.up_proj", "linear", r"mlp\.down_proj"),
)
"""Vision blocks of Qwen2.5-VL, whose feed-forward part is gated as Llama's."""

INTERNVL_VISION_ROWS = (
    GroupRow("qkv", "layernorm_before", "norm", r"attention\.[qkv]_proj", "attention"),
    GroupRow("o", "attention.v_proj", "linear", r"attention\.projection_layer"),
    GroupRow("fc1", "layernorm_after", "norm", r"mlp\.fc1", "mlp"),
)
"""Vision blocks of InternVL as Hugging Face has it."""


INTERNVIT_ROWS = QWEN2_VISION_ROWS
"""Vision blocks of InternVL's own code: names as in Qwen2-VL."""


def linears_of(block: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a module by their names in it.

    The output layer of `torch.nn.MultiheadAttention` is left out: it is read, never called.
    """
    kept = {id(m.out_proj) for m in block.modules() if isinstance(m, nn.MultiheadAttention)}
    return {
        n: m for n, m in block.named_modules() if isinstance(m, nn.Linear) and id(m) not in kept
    }


def _heads(row: GroupRow, block: nn.Module, made: int, read: int) -> ValueHeads | None:
    """Return how `made` rows become the `read` inputs of an output layer; None if they do not."""
    attention = block.get_submodule(row.prev.rpartition(".")[0])
    width = int(getattr(attention, "head_dim", 0))
    if not width or read % width:
        return None
    if row.fused == "heads":
        count, rest = divmod(made - read, 2 * width)
        repeats = read // (count * width) if count > 0 else 0
        stride = (repeats + 2) * width
        heads = ValueHeads(count, repeats, width, stride, stride - width)
    else:
        count, rest = divmod(made, width)
        repeats = read // (count * width) if count > 0 else 0
        heads = ValueHeads(count, repeats, width, width)
    fits = count > 0 and not rest and count * repeats * width == read
    return heads if fits else None


def groups_of(
    rows: tuple[GroupRow, ...], name: str, block: nn.Module, *, published: bool, family: str
) -> list[LinearGroup]:
    """Return the groups of a block; see `Adapter.groups`."""
    linears, modules = linears_of(block), dict(block.named_modules())
    made = []
    for row in rows:
        names = [n for n in linears if re.fullmatch(row.linears, n)]
        if not names or row.prev not in modules or row.inspect not in modules:
            raise ModelError(
                f"{name}: no {row.linears!r} behind {row.prev!r}; is this model really of"
                f" family {family!r}?"
            )
        values = None
        if row.prev_kind == "linear":
            prev, read = linears.get(row.prev), linears[names[0]].in_features
            if prev is None:
                continue
            if row.fused == "heads" or (prev.out_features != read and row.fused != "tail"):
                values = None if published else _heads(row, block, prev.out_features, read)
                if values is None:
                    continue
        made.append(
            LinearGroup(
                row.name,
                f"{name}.{row.prev}",
                row.prev_kind,
                tuple(f"{name}.{n}" for n in names),
                f"{name}.{row.inspect or names[0]}",
                values,
            )
        )
    return made
