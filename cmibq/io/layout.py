"""The two ways in which a package holds its tensors, and what it takes over from the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from cmibq.errors import ConfigError, ModelError, nearest
from cmibq.fileio import read_json
from cmibq.io.compressed_tensors import METHOD, config_of, from_compressed, to_compressed
from cmibq.io.manifest import LayerSpec, Manifest

__all__ = [
    "CONFIG",
    "LAYOUTS",
    "Layout",
    "copy_companions",
    "layout_of",
    "model_config",
    "without_copies",
]

CONFIG: Final = "config.json"
_Layers = Mapping[str, LayerSpec]
_Tensors = Mapping[str, Tensor]
# What a model folder may have beside its weights and config.json. Code (*.py) is never copied.
COMPANIONS: Final = (
    *("*tokenizer*.json", "*tokenizer*.model", "*.spm", "spiece.model", "sentencepiece*.model"),
    *("vocab*.json", "vocab*.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    *("*processor_config.json", "chat_template*", "additional_chat_templates/*.jinja"),
    *("generation_config.json", "LICENSE*", "*.tiktoken"),
)


@dataclass(frozen=True)
class Layout:
    """How packed layers are written.

    Args:
        weights: name of the file.
        write: state dict -> tensors of the file.
        read: tensors of the file -> state dict.
        config: (layers, further name of a layer -> its first) -> ``quantization_config``.
        exact_dtype: the file is opened in this data type, in which its numbers stay what they are.
    """

    weights: str
    write: Callable[[_Tensors, _Layers], dict[str, Tensor]]
    read: Callable[[_Tensors, _Layers], dict[str, Tensor]]
    config: Callable[[_Layers, Mapping[str, str]], dict[str, Any]]
    exact_dtype: str | None = None


def _as_is(tensors: _Tensors, layers: _Layers) -> dict[str, Tensor]:
    return dict(tensors)


def _own_config(layers: _Layers, shared: Mapping[str, str]) -> dict[str, Any]:
    values = {
        "quant_method": "cmibq",
        "format": Manifest("", {}, layers, shared).version,
        "weights": "cmibq.safetensors",
        "layers": {name: spec.to_json() for name, spec in layers.items()},
    }
    return values | ({"tied": dict(shared)} if shared else {})


def _compressed_config(layers: _Layers, shared: Mapping[str, str]) -> dict[str, Any]:
    if shared:
        name, first = next(iter(shared.items()))
        raise ModelError(f"layer {name} is the same as {first}; write it with format cmibq")
    return config_of(layers)


LAYOUTS: Final = {
    "cmibq": Layout("cmibq.safetensors", _as_is, _as_is, _own_config),
    METHOD: Layout(
        "model.safetensors",
        to_compressed,
        from_compressed,
        _compressed_config,
        exact_dtype="float32",
    ),
}
"""Value of the recipe's ``format`` -> layout."""


def layout_of(name: str) -> Layout:
    """Return a layout by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"unknown format {name!r}; {nearest(name, LAYOUTS)}")
    return LAYOUTS[name]


def without_copies(state: _Tensors) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a state dict into tensors of their own and names of tensors that are the same."""
    seen: dict[tuple[Any, ...], str] = {}
    own, tied = {}, {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first = seen.setdefault(key, name) if tensor.numel() else name
        if first == name:
            own[name] = tensor
        else:
            tied[name] = first
    return own, tied


def model_config(
    model: nn.Module, source: Path, layers: _Layers, shared: Mapping[str, str], layout: Layout
) -> dict[str, Any]:
    """Return the ``config.json`` of a package.

    In compressed-tensors, transformers rounds scales to the data type of the model. bfloat16 has
    fewer digits than our float16 scales, so such a model says float32: all numbers stay the same.

    Args:
        model: its ``config`` is taken if it has one.
        source: folder of the model it was made from, for models without.
        layers: the packed layers.
        shared: further name -> first name of layers that are there more than once.
        layout: how the layers are written.
    """
    own: Any = getattr(model, "config", None)
    text = own.to_json_string() if hasattr(own, "to_json_string") else None
    config: dict[str, Any] = json.loads(text) if text else read_json(source / CONFIG)
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        part.pop("_name_or_path", None)  # where it lay on this machine
        for key in ("dtype", "torch_dtype") if layout.exact_dtype else ():
            if part.get(key) == "bfloat16":
                part[key] = layout.exact_dtype
    return config | {"quantization_config": layout.config(layers, shared)}


def copy_companions(source: Path, folder: Path) -> list[str]:
    """Copy tokenizer, processor and chat template; return the names of the files."""
    found = {p for pattern in COMPANIONS for p in source.glob(pattern) if p.is_file()}
    names = sorted(p.relative_to(source).as_posix() for p in found)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    return names
