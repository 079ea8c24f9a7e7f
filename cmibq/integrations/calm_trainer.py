"""What a `transformers.Trainer` logs of a composed vision tower: one callback.

trainer = Trainer(model, args, train_dataset=data, callbacks=[calm_callback()])
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

from torch import nn

from cmibq.errors import ModelError
from cmibq.integrations.calm import calm_of
from cmibq.models.composed import CALMVisionTower, Composition, watched
from cmibq.train.calm import check_frozen, grad_norms, mean_entropy

__all__ = ["calm_callback"]


def _tower(model: Any) -> CALMVisionTower:
    """Return the composed tower of a model.

    Raises:
        ModelError: it has none.
    """
    tower = calm_of(model) if isinstance(model, nn.Module) else None
    if tower is None:
        raise ModelError(
            f"{type(model).__name__} has no composed vision tower; call attach_calm(model,"
            " augmenting) before the Trainer is made"
        )
    return tower


class _Events:
    """What the callback does; transformers calls these by name, see `calm_callback`."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._seen: list[Composition] = []
        self._rows: list[list[list[float]]] = []
        self._norms: list[list[float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Refuse towers that would be trained; watch the passes of the model from now on."""
        check_frozen(_tower(more["model"]))
        self._stack.close()
        self._seen = self._stack.enter_context(watched())
        own = more.get("optimizer")
        own = getattr(own, "optimizer", own)  # accelerate wraps it
        if own is not None and not _has_event():
            told = functools.partial(self.on_pre_optimizer_step, args, state, control)
            handle = own.register_step_pre_hook(lambda *_: told(model=more["model"]))
            self._stack.callback(handle.remove)

    def on_substep_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Take the entropy of a batch, and let go of what it was computed from."""
        entropy = mean_entropy(self._seen)
        self._seen.clear()
        if entropy is not None:
            self._rows.append(entropy.tolist())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Take the norms of the gradients; they are clipped by then."""
        self._norms.append(grad_norms(_tower(more["model"]).calm_modules))

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Take the entropy of the last batch of a step."""
        self.on_substep_end(args, state, control, **more)

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Add the averages since the last log."""
        logs = more.get("logs")
        if logs is None or not (self._rows or self._norms):
            return
        told: dict[str, Any] = {}
        if "loss" in logs:
            told["train_loss"] = logs["loss"]
        if self._norms:
            sums = [sum(n * n for n in norms) ** 0.5 for norms in self._norms]
            told["calm_module_grad_norm"] = sum(sums) / len(sums)
        entropy = _mean(self._rows)
        if entropy:
            cells = [value for row in entropy for value in row]
            told["attention_entropy"] = sum(cells) / len(cells)
            for n, row in enumerate(entropy):
                told |= {f"attention_entropy/{n}.{h}": value for h, value in enumerate(row)}
        self._rows, self._norms = [], []
        logs.update(told)
        state.log_history[-1].update(told)
        self.history.append({"step": state.global_step} | told)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Let go of passes of an evaluation."""
        self._seen.clear()

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Watch no longer."""
        self._stack.close()


def _has_event() -> bool:
    """Return whether this transformers tells callbacks of steps of the optimiser beforehand."""
    from transformers import TrainerCallback

    return hasattr(TrainerCallback, "on_pre_optimizer_step")


def _mean(tables: list[list[list[float]]]) -> list[list[float]]:
    """Return the mean of tables of the same shape; empty without any."""
    if not tables:
        return []
    count = len(tables)
    return [
        [sum(cells) / count for cells in zip(*rows, strict=True)]
        for rows in zip(*tables, strict=True)
    ]


@functools.cache
def _callback_class() -> type[Any]:
    from transformers import TrainerCallback

    return type("CalmCallback", (_Events, TrainerCallback), {})


def calm_callback() -> Any:
    """Return a `transformers.TrainerCallback` for a model with a composed vision tower.

    It refuses towers that are not frozen, and adds to every log (also in ``callback.history``):
    ``train_loss``, ``calm_module_grad_norm``, ``attention_entropy`` and, as
    ``attention_entropy/LAYER.HEAD``, the entropy of every fusion and head in nats. The Trainer logs
    ``learning_rate`` itself. Gradients are told after clipping by ``max_grad_norm``.

    Example:
        >>> type(calm_callback()).__name__
        'CalmCallback'
    """
    return _callback_class()()
