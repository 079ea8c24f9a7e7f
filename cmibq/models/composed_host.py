"""Vision-language models with a composed tower, as folders: ``calm`` in their config.json."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError, PackageError
from cmibq.fileio import read_json
from cmibq.fusion.settled import SettledFusion, settle
from cmibq.io.tensors import read_tensors, write_tensors
from cmibq.models.composed import CALMVisionTower
from cmibq.models.composed_processor import processors_of, record_of
from cmibq.models.processor import quiet
from cmibq.models.towers import parts_of, vision_half
from cmibq.recipe.calm import CALMConfig

__all__ = [
    "KEY",
    "WEIGHTS",
    "calm_of",
    "compose_",
    "describe_",
    "host_of",
    "hosts_composed",
    "is_composed",
    "put_",
    "read_config",
    "read_host",
    "read_layer",
    "refuse_parts",
    "settle_",
    "write_host",
]

KEY = "calm"
"""Entry of config.json: "config" (`CALMConfig`), "augmenting" (configuration of that tower),
"processors" (image processors of both, where known) and "settled" (fusions are plain linear layers,
as packages have them)."""
WEIGHTS = "calm_model.safetensors"
"""Not ``model.safetensors``: transformers alone would open that with a random anchor, and warn."""


_lock = threading.RLock()


def _owner_of(model: nn.Module) -> Any:
    for path in ("", "model", "model.model"):
        found: Any = model
        for part in filter(None, path.split(".")):
            found = getattr(found, part, None)
        if isinstance(found, nn.Module) and "vision_tower" in found._modules:
            return found
    return None


def host_of(model: nn.Module) -> Any:
    """Return the module that holds ``vision_tower``.

    Raises:
        ModelError: there is none.
    """
    owner = _owner_of(model)
    if owner is None:
        raise ModelError(
            f"{type(model).__name__} has no vision_tower; compose a LLaVA-like model, or build a"
            " CALMVisionTower yourself"
        )
    return owner


def calm_of(model: nn.Module) -> CALMVisionTower | None:
    """Return the composed tower of a model, or None."""
    return next((m for m in model.modules() if isinstance(m, CALMVisionTower)), None)


def describe_(model: nn.Module) -> None:
    """Write into the configuration of a model how its tower is composed, or that it is not."""
    hosted: Any = model
    tower, config = calm_of(model), getattr(hosted, "config", None)
    if config is None:
        return
    if tower is None:
        vars(config).pop(KEY, None)
        return
    other: Any = tower.augmenting_tower
    setattr(
        config,
        KEY,
        {
            "config": tower.calm_config.to_dict(),
            "augmenting": other.config.to_dict(),
            "processors": record_of(tower.processors),
            "settled": any(isinstance(m, SettledFusion) for m in tower.calm_modules),
        },
    )


def compose_(model: nn.Module) -> CALMVisionTower | None:
    """Compose the tower of a fresh model as its configuration says; fusions and towers are random.

    What is composed already stays as it is.

    Args:
        model: as its configuration makes it, on any device; changed.

    Returns:
        The composed tower, or None where the configuration tells of none.

    Raises:
        ModelError: the entry is damaged.
        ConfigError: heads do not divide the width, or another field is out of range.
    """
    from transformers import AutoConfig, AutoModel

    hosted: Any = model
    told = getattr(getattr(hosted, "config", None), KEY, None)
    host = _owner_of(model)
    if told is None or host is None:
        return None
    if not isinstance(told, dict) or not isinstance(told.get("augmenting"), dict):
        raise ModelError(f"{KEY} in config.json is damaged (no augmenting); copy it again")
    if isinstance(host.vision_tower, CALMVisionTower):
        put_(model, host.vision_tower)
        return host.vision_tower
    config = CALMConfig.from_dict(told.get("config", {}))
    kind, fields = told["augmenting"].get("model_type"), dict(told["augmenting"])
    fields.pop("model_type", None)
    with quiet():
        other = AutoModel.from_config(AutoConfig.for_model(kind, **fields))
    other.to(next(host.vision_tower.parameters()).dtype)
    tower = CALMVisionTower(host.vision_tower, other, config)
    tower.processors = processors_of(told)
    put_(model, tower)
    if told.get("settled"):
        settle_(model)
    for module in (*tower.calm_modules.modules(), *tower.augmenting_tower.modules()):
        mark: Any = module
        mark._is_hf_initialized = True  # the host's post_init would draw weights anew
    return tower


def put_(model: nn.Module, tower: CALMVisionTower) -> None:
    """Make a composed tower the eye of a model; its fusions stay float32 in half checkpoints."""
    owner = host_of(model)
    owner.vision_tower = tower.train(model.training)
    for host in (model, owner):
        keep = getattr(host, "_keep_in_fp32_modules_strict", None)
        if isinstance(keep, set):
            host._keep_in_fp32_modules_strict = {*keep, "calm_modules"}


def refuse_parts(model: nn.Module, info: dict[str, Any]) -> None:
    """Refuse a checkpoint whose weights and configuration disagree about a composed tower.

    Args:
        model: that has been loaded.
        info: ``missing_keys`` and ``unexpected_keys`` of its loading.

    Raises:
        ModelError: naming weights.
    """
    parts = ("calm_modules.", "anchor_tower.", "augmenting_tower.")
    marks = [f"vision_tower.{part}" for part in parts]
    for what in ("missing_keys", "unexpected_keys"):
        keys = sorted(k for k in map(str, info.get(what, ())) if any(m in k for m in marks))
        if keys and _owner_of(model) is not None:
            raise ModelError(
                f"{len(keys)} weights of the composed tower are {what.split('_')[0]} ({keys[0]},"
                " ...): config.json and weights of this checkpoint disagree about it; save the"
                " model again with save_pretrained after attach_calm, or load the plain model and"
                " attach the tower"
            )


@contextlib.contextmanager
def hosts_composed() -> Iterator[None]:
    """Compose models that are constructed meanwhile and whose configuration names a tower."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.post_init

    @functools.wraps(original)
    def post_init(self: Any) -> None:
        original(self)
        compose_(self)

    with _lock:
        PreTrainedModel.post_init = post_init
        try:
            yield
        finally:
            PreTrainedModel.post_init = original


def is_composed(fields: dict[str, Any]) -> bool:
    """Tell whether a config.json is that of a float model with a composed tower."""
    note = fields.get("quantization_config") or {}
    return bool(fields.get(KEY)) and set(note) == {KEY}


def read_layer(host: Any, tower: nn.Module) -> int:
    """Return which layer of its vision tower a host reads, counted from the end.

    Args:
        host: with ``config.vision_feature_layer``, a number or several.
        tower: the anchor.
    """
    told = getattr(host.config, "vision_feature_layer", None)
    told = -1 if told is None else told
    count = parts_of(vision_half(tower)).depth + 1
    return max(i if i < 0 else i - count for i in ([told] if isinstance(told, int) else told))


def read_config(folder: Path) -> Any:
    """Read the configuration of a composed model, without the note that stops other programs."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if is_composed(read_json(folder / "config.json")):
        vars(config).pop("quantization_config", None)
    return config


def settle_(model: nn.Module) -> nn.Module:
    """Make the fusions of a model's composed tower plain linear layers, in place.

    Nothing happens to a model without a composed tower, or that is settled already.

    Args:
        model: a model, or a composed tower itself.
    """
    tower = calm_of(model)
    if tower is not None:
        for number, fusion in enumerate(tower.calm_modules):
            made: Any = settle(fusion)  # type: ignore[arg-type]
            tower.calm_modules[number] = made
        describe_(model)
    return model


def write_host(model: nn.Module, folder: Path) -> None:
    """Write the configuration and weights of a model with a composed tower, for `read_host`."""
    hosted: Any = model
    describe_(model)
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied weights once
            seen.add(id(tensor))
            state[name] = tensor.detach().contiguous()
    with (folder / WEIGHTS).open("wb") as file:
        write_tensors(file, state)
    with quiet():
        hosted.config.save_pretrained(folder)
        if getattr(hosted, "generation_config", None) is not None:
            hosted.generation_config.save_pretrained(folder)


def read_host(folder: Path) -> nn.Module:
    """Open what `write_host` wrote, in evaluation mode, every tensor in the dtype of the file.

    Raises:
        PackageError: the file is truncated or damaged.
        ModelError: weights are missing or left over, or config.json cannot be used.
    """
    from transformers import AutoModelForImageTextToText

    with quiet():
        model: Any = AutoModelForImageTextToText.from_config(read_config(folder))
    compose_(model)
    if not (folder / WEIGHTS).is_file():
        raise PackageError(f"{folder} has no {WEIGHTS}; copy it again")
    state, _ = read_tensors(folder / WEIGHTS)
    own = model.state_dict(keep_vars=True)
    tied = {n for n, t in own.items() if n not in state and any(t is own.get(m) for m in state)}
    lost = [n for n in own if n not in state and n not in tied]
    extra = [n for n in state if n not in own]
    wrong = [n for n, t in state.items() if n in own and t.shape != own[n].shape]
    if lost or extra or wrong:
        some = ", ".join((lost + extra + wrong)[:3])
        raise ModelError(
            f"{folder}: {len(lost)} weights are missing, {len(extra)} left over and {len(wrong)} of"
            f" another shape ({some}); it is incomplete or belongs to another model"
        )
    model.load_state_dict(state, strict=False, assign=True)
    with torch.no_grad():
        model.tie_weights()
    made: nn.Module = model.eval()
    return made
