"""CM-IBQ inside a Hugging Face model: behind its projector, without a subclass.

    bridge = attach_cm_ibq(model, CMIBQConfig(feature_dim=4096, stage2_bits=2, min_bits=0))

Checkpoints saved afterwards name the layer in config.json. Processes that import this module (or
`cmibq.integrations.transformers`) rebuild it in ``from_pretrained``; in others loading fails.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ConfigError, ModelError
from cmibq.integrations.bridge import NAME, Bridge, BridgeConfig, bridge_of
from cmibq.integrations.calm import check_calm
from cmibq.integrations.glue import register, unregister
from cmibq.integrations.hooks import (
    PROJECTORS,
    add_bridge,
    attached,
    hook,
    input_width,
    projector_of,
)
from cmibq.integrations.request import CURRENT, Collected, Request
from cmibq.recipe.cm_ibq import CMIBQConfig

__all__ = ["attach_cm_ibq", "bridge_of", "check", "collect", "register", "unregister"]


def attach_cm_ibq(model: nn.Module, config: BridgeConfig | CMIBQConfig | dict[str, Any]) -> Bridge:
    """Put a CM-IBQ layer behind the projector of a model.

    The model's forward then adds the layer's loss terms to its ``loss`` while training, and takes
    ``cm_ibq_task`` (task embeddings [B, E] or ids [B]) and ``return_cm_ibq=True`` (the diagnostics,
    as ``output["cm_ibq"]``). Parameters are those of the model; ``save_pretrained`` saves them.

    Args:
        model: LLaVA, LLaVA-NeXT, LLaVA-OneVision or Qwen2-VL of transformers, or the original one.
        config: of the layer, or of layer and host (`BridgeConfig`); dictionaries may leave out
            ``feature_dim`` and ``task_dim``.

    Returns:
        The bridge; ``bridge.layer`` is the `IBQuantizedLayer`.

    Raises:
        ConfigError: a width is not the model's, or the model has a layer already.
        ModelError: no projector is known.
    """
    register()
    host: Any = model
    place = projector_of(model)
    if place is None:
        raise ModelError(
            f"{type(model).__name__} has no projector that is known; known are"
            f" {', '.join(PROJECTORS)}"
        )
    if isinstance(getattr(place, NAME, None), Bridge):
        raise ConfigError(
            f"{type(model).__name__} has a CM-IBQ layer already; take bridge_of(model)"
        )
    width = int(host.get_input_embeddings().embedding_dim)
    options = BridgeConfig.of(config, width, input_width(place))
    _check_place(host, options, input_width(place) if options.position == "pre" else width)
    told = options.layer.task_dim
    if options.layer.mode == "task" and options.task == "text" and told != width:
        raise ConfigError(f"task_dim is {told}; token embeddings of this model have {width}")
    bridge = add_bridge(place, options)
    host.config.cm_ibq = options.to_dict()
    hook(model)
    return bridge


def _check_place(host: Any, options: BridgeConfig, width: int) -> None:
    """Refuse a width that is not that of the features, and hosts that merge patches in between.

    Raises:
        ConfigError: naming both widths, or the position that the host takes.
    """
    vision = getattr(host.config, "vision_config", None)
    if options.position == "pre" and hasattr(vision, "spatial_merge_size"):
        raise ConfigError(
            f"position is 'pre', but the projector of {type(host).__name__} merges patches; take"
            " 'post'"
        )
    if options.layer.feature_dim != width:
        verb, given = "takes" if options.position == "pre" else "gives", options.layer.feature_dim
        raise ConfigError(f"feature_dim is {given}; the projector of this model {verb} {width}")


@torch.no_grad()
def collect(model: nn.Module, batch: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Return the features that the layer of a model would get, and leave before the decoder.

    Args:
        model: with a layer attached.
        batch: its inputs.

    Returns:
        Dictionaries for `stage_one_pretrain`: features [B, T, D], task_embedding, text_features;
        one for each number of tokens.

    Raises:
        ModelError: no layer is attached.
    """
    if attached(model) is None:
        raise ModelError(f"{type(model).__name__} has no CM-IBQ layer; call attach_cm_ibq first")
    request = Request(collect=True)
    token = CURRENT.set(request)
    try:
        model(**batch)
    except Collected:
        pass
    finally:
        CURRENT.reset(token)
    return request.collected


def check(model: nn.Module) -> None:
    """Refuse a model whose CM-IBQ layer or composed tower is not what its configuration names.

    Raises:
        ModelError: the layer or the tower is missing, was not loaded, or is not in config.json.
    """
    check_calm(model)
    named = getattr(getattr(model, "config", None), NAME, None)
    bridge = bridge_of(model)
    name = type(model).__name__
    adapters = getattr(model, "peft_config", None) or {}
    if any(NAME in (a.modules_to_save or ()) for a in adapters.values()) and bridge is None:
        raise ModelError(
            "the adapter was trained with a CM-IBQ layer, but the model has none; call"
            " attach_cm_ibq with the same configuration before the adapter is loaded"
        )
    if named and bridge is None:
        raise ModelError(
            f"config.json of {name} names a CM-IBQ layer, but the model has none and would run"
            " unquantised; import cmibq.integrations.transformers (for the original LLaVA run"
            " cmibq.integrations.llava.install()) before loading it"
        )
    if bridge is not None and not named:
        raise ModelError(
            f"{name} has a CM-IBQ layer that its configuration lacks; use attach_cm_ibq"
        )
    if bridge is not None:
        bridge.check_trained()


register()
