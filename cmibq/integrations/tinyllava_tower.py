"""The composed tower as a vision tower of TinyLLaVA_Factory."""

from __future__ import annotations

import functools
import importlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmibq.errors import ConfigError, ModelError
from cmibq.integrations.tinyllava_fork import is_fork, read_config, read_weights
from cmibq.integrations.tinyllava_record import Record, weights_
from cmibq.models.composed_keys import check_modules, tower_state
from cmibq.models.towers import parts_of

__all__ = ["opening", "tower_class"]

_log = logging.getLogger(__name__)


def _load(tower: Any, given: dict[str, Tensor], where: str | Path) -> None:
    """Load a composed tower, all of it or nothing.

    Args:
        tower: to load into.
        given: weights of it, or of a model that holds it; ours, or the public fork's.
        where: for the message.

    Raises:
        ModelError: some are missing, or do not fit.
    """
    state, own = tower_state(tower, given), tower.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    check_modules(
        tower, {n: s for n, s in shapes.items() if n.startswith("calm_modules.")}, str(where)
    )
    bad = [name for name in own if shapes.get(name) != tuple(own[name].shape)]
    if bad:
        raise ModelError(
            f"{where}: {len(bad)} weights of the towers are missing or of another shape ({bad[0]},"
            " ...); name the towers that it was trained with"
        )
    tower.load_state_dict({name: state[name] for name in own})


class _Tower:
    """What the class does; the host knows its base, see `tower_class`."""

    _vision_tower: Any
    _image_processor: Any

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)  # type: ignore[call-arg]  # of the host's base class
        record = Record.of(cfg)
        self._vision_tower = record.tower(cfg)
        self._image_processor = record.images()
        self._prefix = parts_of(self._vision_tower.anchor_tower).prefix_tokens

    def _load_model(
        self,
        vision_tower_name: str,
        model_name_or_path2: str = "",
        pretrained_vision_tower_path: str | None = None,
        **_: Any,
    ) -> None:
        """Load both towers where they were published, or all that a first stage saved."""
        if pretrained_vision_tower_path is None:
            weights_(self._vision_tower, (vision_tower_name, model_name_or_path2))
            return
        state = read_weights(pretrained_vision_tower_path)
        _load(self._vision_tower, state, pretrained_vision_tower_path)
        _log.info("composed tower of %s", pretrained_vision_tower_path)

    def forward(self, x: Any, **kwargs: Any) -> Tensor:
        """Return image features [B, tokens, width] of packed pixels, or of a dictionary."""
        tower = self._vision_tower
        for half in (tower.anchor_tower, tower.augmenting_tower):
            for module in half.modules():  # the host's is re-entrant: fusions would get no gradient
                if getattr(module, "gradient_checkpointing", False) is True:
                    module.gradient_checkpointing = False  # the composed tower has its own
        pixels = x if isinstance(x, dict) else self._image_processor.unpack(x)
        made = tower(pixels, output_hidden_states=True).hidden_states
        features: Tensor = made[tower.calm_config.select_layer]
        chosen = kwargs.get("vision_feature_select_strategy", "patch")
        if chosen not in ("patch", "cls_patch"):
            raise ConfigError(f"mm_vision_select_feature is {chosen!r}; give patch or cls_patch")
        return features[:, self._prefix :] if chosen == "patch" else features


@functools.cache
def tower_class() -> type[Any]:
    """Return the class that is registered with the host as ``calm``."""
    base = importlib.import_module("tinyllava.model.vision_tower.base")
    return type("CALMVisionTower", (_Tower, base.VisionTower), {})


def opening(original: Any) -> Any:
    """Wrap ``from_pretrained``: a checkpoint of the public fork has other names for weights."""

    @functools.wraps(original)
    def from_pretrained(cls: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        if not (Path(path).is_dir() and is_fork(read_config(path))):
            return original(cls, path, *args, **kwargs)
        model = cls(cls.config_class.from_pretrained(path))
        state = read_weights(path)
        _load(model.vision_tower._vision_tower, state, path)
        rest = {n: v for n, v in state.items() if not n.startswith("vision_tower.")}
        lost = model.load_state_dict(rest, strict=False).missing_keys
        if [n for n in lost if not n.startswith("vision_tower.")]:
            raise ModelError(f"{path}: {len(lost)} weights are missing ({lost[0]}, ...)")
        dtype = kwargs.get("torch_dtype")
        return model.to(dtype if isinstance(dtype, torch.dtype) else torch.float32).eval()

    wrapped: Any = from_pretrained
    return classmethod(wrapped)
