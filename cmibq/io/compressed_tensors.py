"""The ``pack-quantized`` layout of compressed-tensors, which stock transformers and vLLM read.

A code of b bits at column k of a row lies at bit ``k * b`` of the row, lowest bit first, in int32
words: the bytes of our own rows, filled up to whole words. Both store ``code + 2**(b-1)``. So
nothing is packed anew and nothing can change; scales keep their float16.

Only symmetric layers with one width each are written. Zero points would not load: transformers
5.23 with compressed-tensors 0.20 makes a place of another shape for them. Reading takes both.

References:
    compressed-tensors 0.20, ``compressors/pack_quantized``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from cmibq.errors import ModelError, PackageError
from cmibq.io.manifest import LayerSpec

__all__ = ["METHOD", "config_of", "from_compressed", "refusal", "to_compressed"]

METHOD: Final = "compressed-tensors"
_WORD: Final = 4  # bytes
_NUMBER: Final = re.compile(r"(.*?)\.(\d+)\.(.*)")


def refusal(layers: Mapping[str, LayerSpec]) -> str | None:
    """Return why some layers cannot be written in this layout, or None if they can.

    Example:
        >>> refusal({"up": LayerSpec((64, 64), 4, 32, symmetric=False)})
        'layer up has zero points, which do not load in transformers'
        >>> refusal({"up": LayerSpec((64, 64), 4, 32, symmetric=True)}) is None
        True
    """
    for name, spec in layers.items():
        if not isinstance(spec.bits, int):
            return f"layer {name} has mixed bits within one layer"
        if not spec.symmetric:
            return f"layer {name} has zero points, which do not load in transformers"
    return None


def _pattern(names: list[str]) -> list[str]:
    """Return few regular expressions that match exactly these modules, with or without a prefix.

    A base model (``AutoModel``) lacks the first part of each name, so ``model.`` may be missing.
    """
    blocks: dict[tuple[str, str], list[int]] = {}
    plain = []
    for name in names:
        found = _NUMBER.fullmatch(name)
        if found:
            blocks.setdefault((found[1], found[3]), []).append(int(found[2]))
        else:
            plain.append(name)
    leaves: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (head, leaf), numbers in blocks.items():
        leaves.setdefault((head, tuple(numbers)), []).append(leaf)
    made = [_whole(re.escape(name)) for name in plain]
    for (head, some), ends in leaves.items():
        which = "|".join(map(str, some))
        made.append(_whole(rf"{re.escape(head)}\.({which})\.({'|'.join(map(re.escape, ends))})"))
    return made


def _whole(pattern: str) -> str:
    head, dot, rest = pattern.partition(r"model\.")
    if not head and dot:
        pattern = rf"(model\.)?{rest}"
    return f"re:^{pattern}$"


def _scheme(spec: LayerSpec) -> dict[str, Any]:
    """Return the QuantizationScheme of a layer, without targets."""
    cols = spec.shape[1]
    grouped = 0 < spec.group_size < cols
    weights = {
        "num_bits": spec.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if grouped else "channel",
        "group_size": spec.group_size if grouped else None,
        "dynamic": False,
    }
    acts = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "group_size": None,
        "dynamic": True,
    }
    return {
        "format": "pack-quantized",
        "weights": weights,
        "input_activations": acts if spec.act_bits == 8 else None,
        "output_activations": None,
    }


def config_of(layers: Mapping[str, LayerSpec]) -> dict[str, Any]:
    r"""Return the ``quantization_config`` of such layers: one config group per kind of layer.

    Raises:
        ModelError: a layer cannot be written in this layout.

    Example:
        >>> config = config_of({f"model.layers.{i}.up": LayerSpec((64, 64), 4, 32, True)
        ...                     for i in range(3)})
        >>> config["config_groups"]["group_0"]["targets"]
        ['re:^(model\\.)?layers\\.(0|1|2)\\.(up)$']
    """
    if (reason := refusal(layers)) is not None:
        raise ModelError(f"{reason}; write it with format cmibq")
    kinds: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name, spec in layers.items():
        scheme = _scheme(spec)
        kinds.setdefault(repr(scheme), (scheme, []))[1].append(name)
    groups = {
        f"group_{i}": {"targets": _pattern(names), **scheme}
        for i, (scheme, names) in enumerate(kinds.values())
    }
    return {
        "quant_method": METHOD,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [],
        "config_groups": groups,
    }


def _words(packed: Tensor) -> Tensor:
    """Return rows of bytes as rows of int32 words, filled up with 0."""
    rows, size = packed.shape
    wide = torch.zeros(rows, -(-size // _WORD) * _WORD, dtype=torch.uint8)
    wide[:, :size] = packed
    return wide.view(torch.int32)


def to_compressed(
    tensors: Mapping[str, Tensor], layers: Mapping[str, LayerSpec]
) -> dict[str, Tensor]:
    """Return the tensors of a model with those of packed layers as compressed-tensors has them.

    Args:
        tensors: a state dict with ``qweight`` and ``scales`` of every layer.
        layers: how those are stored.
    """
    made = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if layer not in layers or leaf == "bias":
            made[name] = tensor
        elif leaf == "qweight":
            made[f"{layer}.weight_packed"] = _words(tensor)
            made[f"{layer}.weight_shape"] = torch.tensor(layers[layer].shape)
        elif leaf == "scales":
            made[f"{layer}.weight_scale"] = tensor
    return made


def _half(scale: Tensor, where: str) -> Tensor:
    """Return scales as float16, which must not change them."""
    half = scale.to(torch.float16)
    if not torch.equal(half.to(scale.dtype), scale):
        raise PackageError(
            f"{where}: a scale is no float16 number, so packed layers cannot hold it exactly"
        )
    return half


def from_compressed(
    tensors: Mapping[str, Tensor], layers: Mapping[str, LayerSpec]
) -> dict[str, Tensor]:
    """Undo `to_compressed`.

    Raises:
        PackageError: a tensor of a layer is missing or has another shape, or a scale is no float16
            number.
    """
    parts = ("weight_packed", "weight_scale", "weight_shape")
    made = {n: t for n, t in tensors.items() if n.rpartition(".")[2] not in parts}
    for name, spec in layers.items():
        try:
            packed, scale, shape = (tensors[f"{name}.{part}"] for part in parts)
        except KeyError as error:
            raise PackageError(
                f"layer {name} lacks {error}; copy or make the model again"
            ) from None
        outs, cols = spec.shape
        assert isinstance(spec.bits, int)
        size, words = -(-cols * spec.bits // 8), -(-cols * spec.bits // 32)
        if packed.dtype != torch.int32 or list(packed.shape) != [outs, words]:
            raise PackageError(f"layer {name}: weight_packed is {list(packed.shape)}, not "
                               f"[{outs}, {words}] words; make the model again")  # fmt: skip
        if shape.tolist() != [outs, cols]:
            raise PackageError(f"layer {name}: weight_shape is {shape.tolist()}, not {spec.shape}")
        made[f"{name}.qweight"] = packed.contiguous().view(torch.uint8)[:, :size].contiguous()
        made[f"{name}.scales"] = _half(scale, f"layer {name}").contiguous()
    return made
