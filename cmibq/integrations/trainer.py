"""What a `transformers.Trainer` needs to train a model with a CM-IBQ layer: one callback.

trainer = Trainer(model, args, train_dataset=data, callbacks=[cm_ibq_callback()])
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn

from cmibq.errors import ConfigError, ModelError
from cmibq.integrations.bridge import Bridge, bridge_of
from cmibq.integrations.hooks import FORWARDS
from cmibq.train import BitSchedule, split_scales_
from cmibq.train.groups import SCALE_LR

__all__ = ["cm_ibq_callback", "scaling"]

_MARK = "_cmibq_scales"


def _batches(loader: Any, args: Any, step: int) -> int:
    """Return how many batches the Trainer accumulates in an optimiser step of its epoch."""
    whole = int(args.gradient_accumulation_steps)
    try:
        count = len(loader)
    except TypeError:
        return whole
    steps = -(-count // whole)
    last = count % whole or whole
    return last if step % steps == steps - 1 else whole


def _bridge(model: Any) -> Bridge:
    """Return the bridge of a model.

    Raises:
        ModelError: it has none.
    """
    bridge = bridge_of(model) if isinstance(model, nn.Module) else None
    if bridge is None:
        raise ModelError(
            f"{type(model).__name__} has no CM-IBQ layer; call attach_cm_ibq(model, config)"
            " before the Trainer is made"
        )
    return bridge


class _Events:
    """What the callback does; transformers calls these by name, see `cm_ibq_callback`."""

    def __init__(self, anneal: bool, finalize: bool, scale_lr: float | None) -> None:
        super().__init__()
        self.anneal, self.finalize, self.scale_lr = anneal, finalize, scale_lr
        self.history: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._count = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Set target and weight of an optimiser step; freeze the maps when it is time."""
        bridge = _bridge(more["model"])
        step, layer = int(state.global_step), bridge.layer
        if self.anneal:
            schedule = BitSchedule.of(bridge.options.layer, max(int(state.max_steps), 1))
            layer.target_bits = schedule.bits(step)
            freeze: Any = getattr(layer, "freeze_", None)
            if step >= schedule.freeze_step and freeze is not None:
                freeze()
        across = getattr(args, "average_tokens_across_devices", False)
        processes = int(args.world_size) if across else 1
        batches = _batches(more.get("train_dataloader"), args, step)
        bridge.share = 1.0 / (batches * processes)

    def on_substep_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Take the terms of a batch into the averages that are logged next."""
        for name, value in _bridge(more["model"]).last_terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._count += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Do the same after the last batch of a step."""
        self.on_substep_end(args, state, control, **more)

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Add the averages since the last log."""
        logs = more.get("logs")
        if not self._count or logs is None:
            return
        told = {f"cm_ibq/{name}": value / self._count for name, value in self._sums.items()}
        told["cm_ibq/target_bits"] = _bridge(more["model"]).layer.target_bits
        self._sums, self._count = {}, 0
        logs.update(told)
        state.log_history[-1].update(told)
        self.history.append({"step": state.global_step} | told)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Weight terms of other loops by 1 again; make the tables of the coder."""
        bridge = _bridge(more["model"])
        bridge.share = 1.0
        finalize: Any = getattr(bridge.layer, "finalize_", None)
        if self.finalize and finalize is not None:
            with torch.no_grad():
                finalize()


@functools.cache
def _callback_class() -> type[Any]:
    from transformers import TrainerCallback

    return type("CmIbqCallback", (_Events, TrainerCallback), {})


def scaling(original: Any) -> Any:
    """Wrap ``create_optimizer`` of a Trainer: with our callback, ranges and prior learn faster.

    An optimiser that the user brings stays as it is.
    """

    @functools.wraps(original)
    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = self.optimizer is None
        made = original(self, *args, **kwargs)
        for callback in self.callback_handler.callbacks if own else ():
            if isinstance(callback, _Events) and callback.scale_lr is not None:
                split_scales_(self.optimizer, _bridge(self.model).layer, callback.scale_lr)
        return made

    setattr(create_optimizer, _MARK, True)
    return create_optimizer


def cm_ibq_callback(
    anneal: bool = True, finalize: bool = True, scale_lr: float | None = SCALE_LR
) -> Any:
    """Return a `transformers.TrainerCallback` for a model with a CM-IBQ layer.

    The model adds the loss terms by itself (`attach_cm_ibq`), in training only. The callback
    lowers the target bits over the Trainer's steps, freezes integer maps for the last of them,
    weights the terms where the Trainer sums a loss over accumulated batches, and logs every term
    as ``cm_ibq/...`` (also in ``callback.history``).

    Args:
        anneal: follow the schedule of the layer's configuration; False keeps `target_bits`.
        finalize: make the integer tables of the coder when training ends.
        scale_lr: learning rate of ranges and prior, a group of their own in the optimiser that the
            Trainer makes; None leaves them in its groups.

    Raises:
        ConfigError: scale_lr is not a number from 0.

    Example:
        >>> type(cm_ibq_callback()).__name__
        'CmIbqCallback'
    """
    if scale_lr is not None and not (math.isfinite(scale_lr) and scale_lr >= 0):
        raise ConfigError(f"scale_lr is {scale_lr}; allowed are numbers from 0, or None")
    from transformers import Trainer

    if not hasattr(Trainer.create_optimizer, _MARK):
        FORWARDS.set(Trainer, "create_optimizer", scaling(Trainer.create_optimizer))
    return _callback_class()(anneal, finalize, scale_lr)
