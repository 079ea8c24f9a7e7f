"""CM-IBQ in the original LLaVA and in LLaVA-NeXT, without a change to them.

    import cmibq.integrations.llava
    cmibq.integrations.llava.install({"stage2_bits": 2, "min_bits": 1})
    from llava.train.train import train

`install` makes ``llava.model.quantization`` importable, puts the layer of ``config.cm_ibq`` behind
``mm_projector`` wherever one is built, and lets ``LLaVATrainer`` train it. The host's scripts do
the rest: saving, loading, LoRA, the adapter of stage one. ``python -m cmibq.launch --host llava``
runs a script with all this.
"""

from __future__ import annotations

import functools
import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import nn

from cmibq.errors import ConfigError
from cmibq.integrations import glue
from cmibq.integrations.bridge import NAME, Bridge, BridgeConfig
from cmibq.integrations.hooks import add_bridge
from cmibq.integrations.llava_host import (
    loaded,
    marked,
    named_with_state,
    preparing,
    with_callback,
)
from cmibq.integrations.patches import Patches
from cmibq.integrations.trainer import scaling

__all__ = ["install", "uninstall"]

_SERVED = ("llava.model.quantization", "llava.model.quantization.cm_ibq")
_NAMES = {
    "CMIBQConfig": "cmibq.recipe.cm_ibq",
    "IBQuantizedLayer": "cmibq.nn.ib_layer",
    "ImportanceEstimationNetwork": "cmibq.alloc.bottleneck",
    "BitAllocationNetwork": "cmibq.alloc.bottleneck",
    "DifferentiableQuantizer": "cmibq.quant.quantizers.channel_bits",
    "stage_one_pretrain": "cmibq.train",
    "stage_two_finetune": "cmibq.train",
}
_patches = Patches()
_wanted: dict[str, Any] = {}


class _Finder(MetaPathFinder, Loader):
    """Serves `_SERVED`; stands last, so that a host's own modules win."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return a spec for the modules that are served."""
        package = fullname == _SERVED[0]
        return ModuleSpec(fullname, self, is_package=package) if fullname in _SERVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to Python."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module with the classes of cmibq, the same objects."""
        for name, home in _NAMES.items():
            setattr(module, name, getattr(importlib.import_module(home), name))
        vars(module)["__all__"] = list(_NAMES)


_finder = _Finder()


def _projecting(original: Any) -> Any:
    """Wrap ``build_vision_projector``: what ``config.cm_ibq`` names goes behind the projector."""

    @functools.wraps(original)
    def build_vision_projector(config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        projector: nn.Module = original(config, *args, **kwargs)
        fields = getattr(config, NAME, None)
        if fields:
            options = BridgeConfig.of(fields, int(config.hidden_size))
            _check_width(options, int(config.hidden_size))
            add_bridge(projector, options)
        return projector

    return build_vision_projector


def _check_width(options: BridgeConfig, width: int) -> None:
    layer = options.layer
    if layer.feature_dim != width:
        raise ConfigError(
            f"feature_dim is {layer.feature_dim}; mm_projector of this model gives {width}"
        )
    if layer.mode == "task" and options.task == "text" and layer.task_dim != width:
        raise ConfigError(
            f"task_dim is {layer.task_dim}; token embeddings of this model have {width}"
        )


def _initialising(original: Any) -> Any:
    """Wrap ``initialize_vision_modules``: a model that is to be trained gets the wanted layer."""

    @functools.wraps(original)
    def initialize_vision_modules(self: Any, *args: Any, **kwargs: Any) -> None:
        config, projector = self.config, getattr(self, "mm_projector", None)
        if _wanted and not getattr(config, NAME, None):
            options = BridgeConfig.of(_wanted, int(config.hidden_size))
            _check_width(options, int(config.hidden_size))
            setattr(config, NAME, options.to_dict())
            if projector is not None:
                add_bridge(projector, options)
        original(self, *args, **kwargs)
        bridge = getattr(self.mm_projector, NAME, None)
        if isinstance(bridge, Bridge):
            bridge.requires_grad_(True)

    return initialize_vision_modules


def _patch_trainer() -> None:
    """Patch the trainer, where the host's can be imported (it needs its own transformers)."""
    try:
        module = importlib.import_module("llava.train.llava_trainer")
    except ImportError:
        return
    trainer = module.LLaVATrainer
    _patches.set(trainer, "__init__", with_callback(trainer.__init__, lambda: bool(_wanted)))
    _patches.set(trainer, "create_optimizer", scaling(trainer.create_optimizer))
    for name in ("_save_checkpoint", "save_state"):
        _patches.set(trainer, name, marked(getattr(trainer, name)))


def _models() -> list[Any]:
    """Return the classes of models that the host has."""
    arch = importlib.import_module("llava.model.llava_arch")
    importlib.import_module("llava.model")
    left, found = [arch.LlavaMetaForCausalLM], []
    while left:
        for one in left.pop().__subclasses__():
            left.append(one)
            found.append(one)
    return found


def install(config: dict[str, Any] | None = None) -> None:
    """Put CM-IBQ into the ``llava`` package that can be imported; twice is once.

    Args:
        config: layer of models that are trained from now on and have none: fields of `CMIBQConfig`,
            or of `BridgeConfig`; widths may be missing. None: only models whose config.json names
            one have a layer.

    Raises:
        ConfigError: a field is unknown or out of range.
        ModuleNotFoundError: there is no ``llava``.
    """
    if config is not None:
        BridgeConfig.of(config, 64)
        _wanted.clear()
        _wanted.update(config)
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    glue.register()
    if _patches:
        return
    arch = importlib.import_module("llava.model.llava_arch")
    _patches.set(arch, "build_vision_projector", _projecting(arch.build_vision_projector))
    meta, causal = arch.LlavaMetaModel, arch.LlavaMetaForCausalLM
    _patches.set(meta, "initialize_vision_modules", _initialising(meta.initialize_vision_modules))
    prepare = "prepare_inputs_labels_for_multimodal"
    _patches.set(causal, prepare, preparing(getattr(causal, prepare)))
    for model in _models():
        _patches.set(model, "named_parameters", named_with_state(model.named_parameters))
        keep = [*(getattr(model, "_keep_in_fp32_modules", None) or []), NAME]
        _patches.set(model, "_keep_in_fp32_modules", keep)
    builder = importlib.import_module("llava.model.builder")
    _patches.set(builder, "load_pretrained_model", loaded(builder.load_pretrained_model, _wanted))
    _patch_trainer()


def uninstall() -> None:
    """Put back every attribute that `install` replaced; models that have a layer keep it."""
    _patches.undo()
    _wanted.clear()
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for name in reversed(_SERVED):
        module = sys.modules.get(name)
        if getattr(getattr(module, "__spec__", None), "loader", None) is _finder:
            del sys.modules[name]
            owner, _, last = name.rpartition(".")
            vars(sys.modules[owner]).pop(last, None) if owner in sys.modules else None
    glue.unregister()
