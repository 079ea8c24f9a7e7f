"""What is told of a training: what fusions cost before it, and what they do during it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cmibq.integrations.bridge import bridge_of
from cmibq.integrations.calm_trainer import calm_callback
from cmibq.integrations.tinyllava_config import Wanted
from cmibq.integrations.tinyllava_host import composed_of
from cmibq.integrations.tinyllava_record import KEY
from cmibq.models.composed import leaving_out
from cmibq.models.feature_cache import FeatureCache

__all__ = ["warning", "watching"]

_log = logging.getLogger(__name__)
_ROWS = 4


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluate a model without a gradient and without a CM-IBQ layer, which is untrained."""
    bridge, mode = bridge_of(model), model.training
    if bridge is not None:
        enabled, bridge.enabled = bridge.enabled, False
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(mode)
        if bridge is not None:
            bridge.enabled = enabled


def _measure(trainer: Any) -> tuple[float, float, float]:
    """Return the loss of the anchor, that of the fusions, and how far features are apart.

    The last is the root of the summed squares of differences, as a share of the anchor's.
    """
    model, data = trainer.model, trainer.train_dataset
    rows = [data[i] for i in range(min(len(data), _ROWS))]
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    tower = composed_of(model)
    count = len(tower.calm_modules) if tower is not None else 0
    losses, features = list[float](), list[Tensor]()
    with _evaluating(model), trainer.compute_loss_context_manager():
        for left_out in (range(count), range(0)):
            with leaving_out(left_out):
                losses.append(float(model(**batch, use_cache=False).loss))
                images = batch["images"].to(model.dtype)
                features.append(model.vision_tower(images).float())
    apart = (features[1] - features[0]).norm() / features[0].norm().clamp(min=1e-12)
    return losses[0], losses[1], float(apart)


def warning(original: Any) -> Any:
    """Wrap ``train`` of the trainer: fusions that do not start as the anchor are measured first."""

    @functools.wraps(original)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        tower = composed_of(self.model)
        strategy = None if tower is None else tower.calm_config.fusion_strategy
        if strategy == "cross_attention" and self.args.pretrained_model_path is None:
            alone, composed, apart = _measure(self)
            _log.warning(
                "fusion_strategy is cross_attention: at step 0 it changes the anchor's features by"
                " %.0f %% and the loss from %.3f to %.3f nats (first %d rows); gated_attention, the"
                " default, starts as the anchor",
                *(100 * apart, alone, composed, _ROWS),
            )
        return original(self, *args, **kwargs)

    return train


def watching(original: Any, wanted: Wanted) -> Any:
    """Wrap the trainer's ``__init__``: trained fusions are watched and logged.

    The callback goes first, so that those that report to TensorBoard or wandb see what it adds.

    Args:
        original: of the host.
        wanted: names the folder for features of the augmenting tower.
    """

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        tower = composed_of(self.model)
        if tower is None:
            return
        tower.cache = FeatureCache(wanted.cache) if wanted.cache else None
        if self.args.tune_type_vision_tower.lower() == KEY:
            self.callback_handler.callbacks.insert(0, calm_callback())

    return __init__
