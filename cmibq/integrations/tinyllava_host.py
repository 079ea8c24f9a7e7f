"""What TinyLLaVA_Factory needs to run at all here, and what its methods do in addition."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from cmibq.errors import ConfigError, ModelError
from cmibq.integrations.patches import Patches
from cmibq.integrations.tinyllava_record import KEY
from cmibq.models.composed import CALMVisionTower

__all__ = ["composed_of", "loosen", "need", "need_deepspeed", "stub", "tuning", "unstub"]

_log = logging.getLogger(__name__)
_NEEDED = ("peft", "accelerate", "einops", "einops_exts", "sentencepiece")
_VERSIONS = ((4, 40), (4, 50))
_FORMATTER = "tinyllava.data.template.formatter"
_PARTS = "deepspeed.runtime.zero.partition_parameters"


def need() -> None:
    """Refuse an environment in which the host cannot work.

    Raises:
        ModelError: naming the package, and how to get it.
    """
    if importlib.util.find_spec("tinyllava") is None:
        raise ModelError(
            "there is no package tinyllava; give the script of a checkout of TinyLLaVA_Factory, or"
            " put the checkout on PYTHONPATH"
        )
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            pip = name.replace("_", "-")
            raise ModelError(f"TinyLLaVA_Factory needs the package {pip}: pip install {pip}")
    import transformers

    found = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if not _VERSIONS[0] <= found < _VERSIONS[1]:
        raise ModelError(
            f"transformers is {transformers.__version__}; TinyLLaVA_Factory works with 4.40 to"
            ' 4.49: pip install "transformers==4.40.1" "accelerate==0.27.2" "peft==0.10.0"'
        )


def _refuse(*_: Any, **__: Any) -> Any:
    raise ModelError("this needs the package deepspeed: pip install deepspeed")


def stub() -> None:
    """Put a deepspeed in place where there is none: the host imports it, used or not."""
    if "deepspeed" in sys.modules or importlib.util.find_spec("deepspeed") is not None:
        return
    names = ("deepspeed", "deepspeed.zero", "deepspeed.runtime", "deepspeed.runtime.zero", _PARTS)
    for name in names:
        made: Any = ModuleType(name)
        made.__spec__, made._cmibq = ModuleSpec(name, None), True
        sys.modules[name] = made
        owner, _, last = name.rpartition(".")
        if owner:
            setattr(sys.modules[owner], last, made)
    parts: Any = sys.modules[_PARTS]
    parts.ZeroParamStatus = SimpleNamespace(NOT_AVAILABLE=0)
    zero: Any = sys.modules["deepspeed.zero"]
    zero.GatheredParameters = zero.Init = _refuse


def need_deepspeed() -> None:
    """Refuse to train with a deepspeed that is not there.

    Raises:
        ModelError: with what to do.
    """
    found = importlib.util.find_spec("deepspeed")
    if found is None or getattr(sys.modules.get("deepspeed"), "_cmibq", False):
        raise ModelError(
            "--deepspeed needs the package deepspeed: pip install deepspeed, or leave the option"
            " out and use torchrun"
        )


def unstub() -> None:
    """Take away what `stub` put in place."""
    for name in [n for n, m in sys.modules.items() if getattr(m, "_cmibq", False)]:
        if name.partition(".")[0] == "deepspeed":
            del sys.modules[name]


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0


def loosen(patches: Patches) -> None:
    """Let the host run on Python 3.11, and in one process without torchrun.

    Its templates have dataclasses with other dataclasses as defaults, which must be hashable; and
    its log asks for the rank where there may be no group of processes.
    """
    if _FORMATTER not in sys.modules:
        spec = importlib.util.find_spec("tinyllava")
        roots = list(spec.submodule_search_locations or []) if spec else []
        path = Path(roots[0], *_FORMATTER.split(".")[1:]).with_suffix(".py")
        found = importlib.util.spec_from_file_location(_FORMATTER, path)
        if found is None or found.loader is None or not path.is_file():
            raise ModelError(f"{path} is missing; check out TinyLLaVA_Factory again")
        module = importlib.util.module_from_spec(found)
        sys.modules[_FORMATTER] = module
        found.loader.exec_module(module)
    for kind in list(vars(sys.modules[_FORMATTER]).values()):
        own = isinstance(kind, type) and kind.__module__ == _FORMATTER
        if own and vars(kind).get("__hash__", object) is None:
            patches.set(kind, "__hash__", object.__hash__)
    logs = importlib.import_module("tinyllava.utils.logging")
    patches.set(logs, "dist", SimpleNamespace(get_rank=_rank))


def composed_of(model: nn.Module) -> CALMVisionTower | None:
    """Return the composed tower of a host's model (or of PEFT's around it), or None."""
    tower = getattr(getattr(model, "vision_tower", None), "_vision_tower", None)
    return tower if isinstance(tower, CALMVisionTower) else None


def tuning(original: Any) -> Any:
    """Wrap ``_vision_tower_tune_type_setting``: `calm` trains the fusions alone."""

    @functools.wraps(original)
    def _vision_tower_tune_type_setting(self: Any, model: Any) -> Any:
        told = self.training_arguments.tune_type_vision_tower.lower()
        tower = composed_of(model)
        if told != KEY:
            return original(self, model)
        if tower is None:
            raise ConfigError(
                "tune_type_vision_tower is 'calm', but the vision tower is not composed; give"
                " --vision_tower calm:ANCHOR --vision_tower2 calm:AUGMENTING, or frozen or full"
            )
        model.vision_tower.requires_grad_(False)
        tower.calm_modules.requires_grad_(True)
        trained = sum(p.numel() for p in tower.calm_modules.parameters())
        total = sum(p.numel() for p in tower.parameters())
        _log.info("CALM trains %d of %d weights (%.2f %%)", trained, total, 100 * trained / total)
        return model

    return _vision_tower_tune_type_setting
