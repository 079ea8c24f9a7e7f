"""The language model of a package as a GGUF file, which llama.cpp and what is built on it run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmibq.errors import ConfigError, ModelError
from cmibq.io.ggml import Blocks, encode_blocks
from cmibq.io.tokens import Vocabulary
from cmibq.nn import PackedLinear

__all__ = [
    "ARCHITECTURES",
    "Written",
    "as_array",
    "check_file",
    "finish",
    "open_gguf",
    "summary",
    "write_language_model",
]

ARCHITECTURES: Final = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""``model_type`` of a decoder -> its architecture in llama.cpp."""
_NAMES: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_FILE_TYPES: Final = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8}


@dataclass
class Written:
    """What became of the weights.

    Args:
        kinds: kind of block -> number of tensors.
        anew: layers that had to be rounded anew.
        rounded: layers whose minima were rounded to float16.
        names: name in the file -> packed layer, with the order of its rows (None as it is).
    """

    kinds: dict[str, int] = field(default_factory=dict)
    anew: list[str] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)
    names: dict[str, tuple[PackedLinear, NDArray[np.intp] | None]] = field(default_factory=dict)


def open_gguf() -> Any:
    """Import the ``gguf`` package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "format gguf needs the package gguf; install it with pip install 'cmibq[gguf]'"
        ) from error
    return gguf


def _order(name: str, config: Any, arch: str) -> NDArray[np.intp] | None:
    """Return the rows of q and k in the order of llama.cpp, which rotates neighbours.

    transformers rotates the first half of a head with the second one; Llama's own code, whose
    order llama.cpp keeps for this architecture, has each pair side by side.
    """
    if arch != "llama" or name not in ("self_attn.q_proj", "self_attn.k_proj"):
        return None
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if name == "self_attn.k_proj":
        heads = config.num_key_value_heads
    return np.arange(heads * size).reshape(heads, 2, size // 2).swapaxes(1, 2).reshape(-1)


def as_array(tensor: Tensor, *, half: bool) -> NDArray[Any]:
    """Return a tensor as float32, or as float16 where `half`, it is no vector and it fits."""
    found = tensor.detach().to(torch.float32).cpu().contiguous().numpy()
    small = half and found.ndim > 1 and float(np.abs(found).max(initial=0)) < 65504
    return found.astype(np.float16) if small else found


def _parameters(writer: Any, config: Any, arch: str, rows: int, written: Written) -> None:
    """Write the numbers that describe the decoder."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in ("default", "linear"):
        raise ModelError(
            f"rope_type is {rope['rope_type']!r}; GGUF files are written for default and linear"
        )
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_rope_dimension_count(size)
    if arch == "llama" or size * heads != config.hidden_size:
        writer.add_key_length(size)
        writer.add_value_length(size)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(open_gguf().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_vocab_size(rows)
    most = max(written.kinds, key=lambda kind: written.kinds[kind], default="F16")
    writer.add_file_type(_FILE_TYPES[most])
    writer.add_quantization_version(open_gguf().GGML_QUANT_VERSION)


def _tokenizer(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.model == "no_vocab":
        return
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
    if vocabulary.scores is not None:
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.space_prefix)
    if vocabulary.merges is not None:
        writer.add_token_merges(list(vocabulary.merges))
    for name, number in (vocabulary.special or {}).items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.add_bos)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _modules(decoder: nn.Module, head: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield (name in the file, name in a block, module) of everything with weights."""
    found: Any = decoder
    yield "token_embd", "", found.embed_tokens
    for number, block in enumerate(found.layers):
        known = dict(block.named_modules())
        for name, short in _NAMES.items():
            yield f"blk.{number}.{short}", name, known[name]
        others = [n for n, m in known.items() if n not in _NAMES and m._parameters]
        if others:
            raise ModelError(f"block {number} has {others[0]}, which GGUF files of this kind lack")
    yield "output_norm", "", found.norm
    if getattr(head, "weight", None) is not getattr(found.embed_tokens, "weight", 0):
        yield "output", "", head  # else llama.cpp takes the embedding


def _encode(
    name: str, module: nn.Module, order: NDArray[np.intp] | None, exact: bool, written: Written
) -> tuple[NDArray[Any], str | None]:
    """Return the data of a weight and its kind of block (None: as NumPy has it)."""
    if not isinstance(module, PackedLinear):
        data = as_array(module.get_parameter("weight"), half=True)
        return data if order is None else data[order], None
    blocks: Blocks = encode_blocks(module, exact=exact)
    written.kinds[blocks.kind] = written.kinds.get(blocks.kind, 0) + 1
    written.names[name] = (module, order)
    if blocks.anew:
        written.anew.append(name)
    elif not blocks.exact:
        written.rounded.append(name)
    data = blocks.data if order is None else np.ascontiguousarray(blocks.data[order])
    return data, None if blocks.kind == "F16" else blocks.kind


def write_language_model(
    decoder: nn.Module,
    head: nn.Module,
    config: Any,
    vocabulary: Vocabulary,
    path: Path,
    *,
    name: str = "",
    exact: bool = False,
) -> Written:
    """Write a decoder, packed or not, as a GGUF file.

    Args:
        decoder: with ``embed_tokens``, ``layers`` and ``norm``.
        head: the output layer.
        config: the decoder's configuration.
        vocabulary: of the tokenizer.
        path: file to make.
        name: of the model.
        exact: no minimum is rounded: Q5_0 in place of Q4_1.

    Raises:
        ModelError: llama.cpp has no such decoder.
        ConfigError: the package ``gguf`` is not installed.
    """
    gguf, family = open_gguf(), str(config.model_type)
    if family not in ARCHITECTURES:
        raise ModelError(
            f"decoder {family!r} is not written as GGUF; supported are {', '.join(ARCHITECTURES)}"
        )
    arch, written = ARCHITECTURES[family], Written()
    tensors = []
    for short, inner, module in _modules(decoder, head):
        order = _order(inner, config, arch)
        data, kind = _encode(f"{short}.weight", module, order, exact, written)
        tensors.append((f"{short}.weight", data, kind))
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            flat = as_array(bias, half=False)
            tensors.append((f"{short}.bias", flat if order is None else flat[order], None))
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(name or path.stem)
    _parameters(writer, config, arch, len(tensors[0][1]), written)
    _tokenizer(writer, vocabulary)
    for title, data, kind in tensors:
        writer.add_tensor(title, data, raw_dtype=gguf.GGMLQuantizationType[kind] if kind else None)
    finish(writer)
    return written


def finish(writer: Any) -> None:
    """Write header, fields and tensors."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_file(path: Path, written: Written) -> dict[str, float]:
    """Read a file back and compare every packed layer with what is in memory.

    Returns:
        Name in the file -> largest difference of a weight, as a share of its largest weight; 0
        where every weight is the same.
    """
    gguf = open_gguf()
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    differences = {}
    for name, (layer, order) in written.names.items():
        tensor = found[name]
        weight = layer.dequantize().numpy()
        weight = weight if order is None else weight[order]
        got = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        top = float(np.abs(weight).max(initial=0.0)) or 1.0
        differences[name] = float(np.abs(got - weight).max(initial=0.0)) / top
    return differences


def summary(written: Written, differences: Mapping[str, float]) -> dict[str, Any]:
    """Return what became of the weights, as JSON values."""
    facts = {"kinds": written.kinds, "anew": written.anew, "rounded": written.rounded}
    exact = sum(1 for d in differences.values() if d == 0)
    worst = max(differences.values(), default=0.0)
    return facts | {"layers": len(differences), "exact": exact, "largest_difference": worst}
