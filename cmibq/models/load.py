"""Opening a local model folder; everything that does not fit is told before weights are read."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmibq.errors import CmibqError, DataError, ModelError, nearest
from cmibq.fileio import read_json
from cmibq.models.base import MODELS, Adapter
from cmibq.models.checks import verify_groups
from cmibq.models.composed_host import (
    KEY,
    WEIGHTS,
    calm_of,
    compose_,
    hosts_composed,
    is_composed,
    read_config,
    read_host,
    settle_,
    write_host,
)
from cmibq.models.processor import load_processor, quiet

__all__ = [
    "LoadedModel",
    "load",
    "read_family",
    "save_float",
    "skeleton",
    "target_widths",
]

logger = logging.getLogger(__name__)

_PUBLISHED = {
    "internvl2": ("internvl", "internvl_chat"),
    "internvl3": ("internvl", "internvl_chat"),
}
"""Names of families in published scripts -> what the ``model_type`` of such a model may be."""
_HOSTED = {
    "LlavaLlamaForCausalLM": "the original LLaVA (haotian-liu/LLaVA)",
    "llava_llama": "the original LLaVA (haotian-liu/LLaVA)",
    "LlavaQwenForCausalLM": "LLaVA-NeXT's own code",
    "InternVLChatModel": "InternVL2's remote code",
    "internvl_chat": "InternVL2's remote code",
}


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to feed it.

    Args:
        model: the Hugging Face model, in evaluation mode.
        processor: its processor.
        adapter: its family.
        path: the folder it came from.
    """

    model: nn.Module
    processor: Any
    adapter: Adapter
    path: Path


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(
            f"model folder {str(folder)!r} does not exist; pass a local Hugging Face model folder"
            " (models are not downloaded)"
        )
    try:
        config = read_json(folder / "config.json")
    except DataError as error:
        raise ModelError(f"{folder} is not a model folder: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'} is not an object; check the checkpoint")
    return config


def _refuse_hosts(config: dict[str, Any], where: Path) -> None:
    """Refuse layouts that only the code of another package can open."""
    names = config.get("architectures") or [""]
    kind = _HOSTED.get(str(names[0])) or _HOSTED.get(str(config.get("model_type")))
    if kind:
        raise ModelError(
            f"{where} has the layout of {kind}, which only its own code opens; open it with that"
            " code and pass the model to cmibq.ptq.quantize_ (docs/systems/mbq.md),"
            " or take the Hugging Face version of the model"
        )


def _family(config: dict[str, Any], where: Path, model: str) -> str:
    _refuse_hosts(config, where)
    found = str(config.get("model_type"))
    supported = ", ".join(MODELS)
    if found not in MODELS:
        raise ModelError(
            f"{where}: model family {found!r} is not supported; supported are {supported}"
        )
    if model not in ("auto", *MODELS, *_PUBLISHED):
        hint = nearest(model, ["auto", *MODELS, *_PUBLISHED])
        raise ModelError(f"model is {model!r}; supported are auto, {supported} ({hint})")
    if found not in _PUBLISHED.get(model, (model,)) and model != "auto":
        raise ModelError(f"model is {model!r} but {where} holds a {found!r}; set model to auto")
    return found


def read_family(path: str | os.PathLike[str], *, model: str = "auto") -> Adapter:
    """Return the adapter of a model folder by its config.json; weights are not read.

    Args:
        path: local model folder.
        model: family it must be of, or ``"auto"``.

    Raises:
        ModelError: no such folder, an unsupported family or decoder; lists what is supported.
    """
    folder = Path(path).expanduser()
    config = _config(folder)
    adapter = MODELS[_family(config, folder, model)]
    text = config.get("text_config") or {}
    decoder = str(text.get("model_type", adapter.decoders[0]))
    if decoder not in adapter.decoders:
        raise ModelError(
            f"{folder}: decoder {decoder!r} of family {adapter.family!r} is not supported;"
            f" supported are {', '.join(adapter.decoders)}"
        )
    return adapter


def skeleton(path: str | os.PathLike[str]) -> nn.Module:
    """Return the model of a folder on the ``meta`` device: names and shapes without weights.

    Raises:
        ModelError: the configuration cannot be used.
    """
    from transformers import AutoModelForImageTextToText

    folder = Path(path).expanduser()
    _config(folder)
    try:
        with quiet(), torch.device("meta"):
            made: nn.Module = AutoModelForImageTextToText.from_config(read_config(folder))
            compose_(made)
    except CmibqError:
        raise
    except Exception as error:  # transformers raises many kinds
        raise ModelError(
            f"{folder / 'config.json'} does not describe a model ({error}); check the checkpoint"
        ) from error
    return made


@functools.lru_cache(maxsize=64)
def _widths(folder: Path, config: str, scope: str) -> dict[str, int]:
    made = settle_(skeleton(folder))
    names = read_family(folder).targets(made, scope)
    return {n: made.get_parameter(f"{n}.weight").shape[1] for n in names}


def target_widths(path: str | os.PathLike[str], scope: str = "lm") -> dict[str, int]:
    """Return the number of inputs of every linear layer that would be quantised; reads no weight.

    Args:
        path: model folder.
        scope: parts of the model, see `Adapter.targets`.

    Raises:
        ModelError: the folder holds no supported model.
    """
    folder = Path(path).expanduser()
    return dict(_widths(folder, json.dumps(_config(folder), sort_keys=True), scope))


def _check_size(folder: Path) -> None:
    """Refuse a configuration of a much larger model than the checkpoint has weights for.

    Missing weights are told by name once the rest is loaded, but transformers makes up values for
    them first: a config.json without sizes stands for a model of 7 billion parameters.
    """
    from safetensors import SafetensorError, safe_open

    stored = 0
    try:
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as content:
                for name in content.keys():  # no mapping
                    stored += math.prod(content.get_slice(name).get_shape())
    except (SafetensorError, OSError):
        return  # told by transformers
    wanted = sum(p.numel() for p in skeleton(folder).parameters())
    if stored and wanted > 2 * stored:
        raise ModelError(
            f"{folder}: config.json describes a model of {wanted} parameters and the checkpoint has"
            f" {stored}; it is incomplete or belongs to another model"
        )


def _weights(folder: Path) -> nn.Module:
    from transformers import AutoModelForImageTextToText

    _check_size(folder)
    if KEY in _config(folder) and (folder / WEIGHTS).is_file():
        return read_host(folder)
    with quiet(), hosts_composed():
        try:
            model, found = AutoModelForImageTextToText.from_pretrained(
                folder,
                config=read_config(folder),
                dtype="auto",
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # told below, with names
                output_loading_info=True,
            )
        except Exception as error:  # transformers and safetensors raise many kinds
            raise ModelError(f"the weights of {folder} cannot be loaded ({error})") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if found.get(kind):
            some = ", ".join(sorted(map(str, found[kind]))[:3])
            raise ModelError(
                f"{folder}: {len(found[kind])} {kind.replace('_', ' ')} in the checkpoint ({some});"
                " it is incomplete or belongs to another model"
            )
    if unused := sorted(map(str, found.get("unexpected_keys") or ())):
        logger.warning(
            "%s: %d weights of the checkpoint have no place in the model that config.json describes"
            " (%s) and are left out; check that both belong together",
            *(folder, len(unused), ", ".join(unused[:3])),
        )
    made: nn.Module = model.eval()
    return made


def _check_image_token(adapter: Adapter, model: nn.Module, processor: Any, folder: Path) -> None:
    """Refuse a processor that marks images by another token than the model looks for."""
    wanted, written = adapter.image_token_id(model), getattr(processor, "image_token_id", None)
    if written is not None and wanted not in (-1, written):
        raise ModelError(
            f"{folder}: the processor writes token {written} for images and config.json says"
            f" image_token_id {wanted}; check that their files belong together"
        )


def load(path: str | os.PathLike[str], *, model: str = "auto") -> LoadedModel:
    """Load a local Hugging Face model folder on the CPU, in the dtype of its checkpoint.

    Args:
        path: folder with config.json, safetensors weights and processor files.
        model: family it must be of, or ``"auto"``.

    Raises:
        ModelError: the folder is missing, of an unsupported family, incomplete or already
            quantised, its processor is another model's, or its groups cannot be scaled; names what
            and lists what is supported.
    """
    folder = Path(path).expanduser()
    adapter = read_family(folder, model=model)
    if _config(folder).get("quantization_config") and not is_composed(_config(folder)):
        raise ModelError(
            f"{folder} is already quantised; pass the float model (a package is opened by eval)"
        )
    processor, network = load_processor(folder), _weights(folder)
    _check_image_token(adapter, network, processor, folder)
    verify_groups(adapter, network)
    return LoadedModel(network, processor, adapter, folder)


def save_float(loaded: LoadedModel, folder: Path) -> None:
    """Write a model and its processor into an existing folder, as transformers would."""
    model: Any = loaded.model
    if calm_of(model) is not None:
        write_host(model, folder)
    with quiet():
        if calm_of(model) is None:
            model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)
