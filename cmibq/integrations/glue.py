"""What transformers has to know of CM-IBQ and CALM: how such models are built, saved and loaded.

Five attributes of its base classes are replaced, and ``forward`` of classes with a layer. They act
only where a configuration has a field ``cm_ibq`` or ``calm``; `unregister` puts them back.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from cmibq.errors import ModelError
from cmibq.integrations.bridge import NAME, Bridge, BridgeConfig
from cmibq.integrations.hooks import FORWARDS, add_bridge, attached, hook, projector_of
from cmibq.integrations.patches import Patches
from cmibq.integrations.request import CURRENT, Request
from cmibq.integrations.units import fill
from cmibq.models.composed_host import KEY as CALM
from cmibq.models.composed_host import compose_, refuse_parts

__all__ = ["register", "unregister"]

_REASONS = {
    NAME: "this checkpoint holds a CM-IBQ layer, without which it must not run: import"
    " cmibq.integrations.transformers, or run cmibq.integrations.llava.install(), before loading",
    CALM: "this checkpoint holds a composed vision tower, without which it must not run: import"
    " cmibq.integrations.transformers before loading",
}
"""Field of a configuration -> what processes are told that do not know of it."""
_patches = Patches()


def _named(fields: Any) -> list[str]:
    """Return the fields of ours that the configuration of a host has (TinyLLaVA has another)."""
    told = fields if isinstance(fields, dict) else vars(fields)
    return [n for n in _REASONS if told.get(n) and (n != CALM or told.get("vision_config"))]


def _sentinel(names: list[str]) -> Any:
    """Return a ``quantization_config`` with which transformers refuses to load.

    One without ``quant_method`` is a ValueError from 4.38 on; older ones want a dictionary.
    """
    from transformers import __version__

    major, minor = (int(part) for part in __version__.split(".")[:2])
    told = {name: _REASONS[name] for name in names}
    return told if (major, minor) >= (4, 38) else "; ".join(told.values())


def _rebuild(model: nn.Module) -> None:
    """Add to a model that has just been constructed what its configuration names."""
    host: Any = model
    fields = getattr(getattr(host, "config", None), NAME, None)
    place = projector_of(model)
    if hasattr(host, "prepare_inputs_labels_for_multimodal"):
        hook(model)  # LLaVA's own code adds projectors later
        return
    if not fields or place is None:
        return
    if not isinstance(getattr(place, NAME, None), Bridge):
        add_bridge(place, BridgeConfig.of(fields, int(host.get_input_embeddings().embedding_dim)))
    hook(model)


def _refuse(model: nn.Module, info: dict[str, Any]) -> None:
    """Refuse a checkpoint whose weights and configuration disagree about the layer.

    Raises:
        ModelError: naming keys.
    """
    mark = f".{NAME}."
    for what in ("missing_keys", "unexpected_keys"):
        keys = sorted(k for k in info.get(what, ()) if mark in k)
        place = keys[0].split(mark)[0] if keys else ""
        alike = [k for k in info.get(what, ()) if k.startswith(place) and mark not in k]
        if (
            keys and not alike
        ):  # a projector that is missing as a whole comes from a file of its own
            raise ModelError(
                f"{len(keys)} weights of the CM-IBQ layer are {what.split('_')[0]}"
                f" ({keys[0]}, ...): config.json and weights of this checkpoint disagree about"
                " the layer; save it again with save_pretrained, or load the plain model and call"
                " attach_cm_ibq"
            )


def _loading(original: Any) -> Any:
    """Wrap ``PreTrainedModel.from_pretrained``."""

    @functools.wraps(original)
    def from_pretrained(
        cls: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        model, info = original(cls, *args, output_loading_info=True, **kwargs)
        _refuse(model, info)
        refuse_parts(model, info)
        return (model, info) if output_loading_info else model

    wrapped: Any = from_pretrained
    return classmethod(wrapped)


def _reading(original: Any) -> Any:
    """Wrap ``PretrainedConfig.from_dict``: with the glue there is nothing to refuse."""

    @functools.wraps(original)
    def from_dict(cls: Any, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if _named(config_dict):
            config_dict = {k: v for k, v in config_dict.items() if k != "quantization_config"}
        return original(cls, config_dict, **kwargs)

    wrapped: Any = from_dict
    return classmethod(wrapped)


def _writing(original: Any) -> Any:
    """Wrap ``PretrainedConfig.to_dict``: other processes refuse what is written."""

    @functools.wraps(original)
    def to_dict(self: Any) -> Any:
        made = original(self)
        if names := _named(self):
            made["quantization_config"] = _sentinel(names)
        return made

    return to_dict


def _building(original: Any) -> Any:
    """Wrap ``PreTrainedModel.post_init``, which ends every constructor."""

    @functools.wraps(original)
    def post_init(self: Any) -> None:
        original(self)
        compose_(self)
        _rebuild(self)

    return post_init


def _generating(original: Any) -> Any:
    """Wrap ``generate``: it encodes images before the first forward, without the prompt."""

    @functools.wraps(original)
    def generate(self: Any, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        bridge = attached(self)
        own = hasattr(self, "prepare_inputs_labels_for_multimodal")
        if bridge is None or own or CURRENT.get() is not None:
            return original(self, inputs, *args, **kwargs)
        ids = kwargs.get("input_ids", inputs)
        request = Request(empty=False)
        token = CURRENT.set(request)
        try:
            fill(request, self, bridge, kwargs | {"input_ids": ids, "labels": None})
            kwargs.pop("cm_ibq_task", None)
            return original(self, inputs, *args, **kwargs)
        finally:
            CURRENT.reset(token)

    return generate


def register() -> None:
    """Teach transformers of CM-IBQ layers and composed towers; twice is once."""
    if _patches:
        return
    from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel

    _patches.set(PreTrainedModel, "post_init", _building(PreTrainedModel.post_init))
    load = PreTrainedModel.from_pretrained.__func__
    _patches.set(PreTrainedModel, "from_pretrained", _loading(load))
    read = PretrainedConfig.from_dict.__func__
    _patches.set(PretrainedConfig, "from_dict", _reading(read))
    _patches.set(PretrainedConfig, "to_dict", _writing(PretrainedConfig.to_dict))
    _patches.set(GenerationMixin, "generate", _generating(GenerationMixin.generate))


def unregister() -> None:
    """Put back what `register` and `hook` replaced; models keep layers, but not their loss."""
    _patches.undo()
    FORWARDS.undo()
