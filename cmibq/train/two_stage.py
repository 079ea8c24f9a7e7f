"""The two stages of CM-IBQ: shape the bottleneck, then train with the task."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.nn.ib_layer import IBQuantizedLayer
from cmibq.train.losses import Terms, composite
from cmibq.train.schedule import BitSchedule

__all__ = ["stage_one_pretrain", "stage_two_finetune"]


def _log(terms: Terms, target: float, task: Tensor | None = None) -> dict[str, float]:
    """Return the terms of a step as numbers."""
    told = {name: float(value.detach()) for name, value in terms._asdict().items()}
    return told | {"target_bits": target} | ({} if task is None else {"task": float(task.detach())})


def _found(layer: IBQuantizedLayer, features: Tensor, task: Tensor | None) -> dict[str, Tensor]:
    """Run the layer; return its diagnostics by the names of the paper's helpers."""
    r = layer.run(features, task)
    names = ("quantised", "reconstructed", "mu", "logvar", "bit_allocation", "rate")
    return dict(zip(names, r, strict=True)) | {"features": features}


def _moved(batch: Any, device: torch.device) -> Any:
    """Return a batch on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _moved(value, device) for key, value in batch.items()}
    return batch


def stage_one_pretrain(
    layer: IBQuantizedLayer,
    dataloader: Iterable[dict[str, Any]],
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    gamma: float = 1.0,
) -> list[dict[str, float]]:
    """Train the layer alone, in one pass over the data.

    Args:
        layer: what is trained.
        dataloader: dictionaries with ``features`` and ``task_embedding``; ``text_features``.
        optimiser: of the parameters of the layer, and of nothing else.
        device: to run on.
        gamma: weight of the bit-rate term.

    Returns:
        The loss terms of every step.

    Raises:
        ModelError: the optimiser holds parameters that are not the layer's; the host is frozen.
    """
    own = {id(p) for p in layer.parameters()}
    strays = [p for g in optimiser.param_groups for p in g["params"] if id(p) not in own]
    if strays:
        raise ModelError(
            f"optimiser holds {len(strays)} parameters that are not the layer's; stage one trains"
            " the layer alone, give it layer.parameters()"
        )
    layer.to(device).train()
    logs = []
    for batch in dataloader:
        batch = _moved(batch, device)
        found = _found(layer, batch["features"], batch.get("task_embedding"))
        found["text_features"] = batch.get("text_features")
        terms = composite(layer.config, found, layer.target_bits, gamma)
        optimiser.zero_grad(set_to_none=True)
        terms.total.backward()
        optimiser.step()
        logs.append(_log(terms, layer.target_bits))
    return logs


def stage_two_finetune(
    layer: IBQuantizedLayer,
    model: nn.Module,
    dataloader: Iterable[Any],
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    anneal: bool = True,
) -> list[dict[str, float]]:
    """Train the layer with the task, in one pass over the data.

    Args:
        layer: the layer inside `model`.
        model: called as ``model(batch, target_bits=...)``; returns ``loss`` and ``cm_ibq``.
        dataloader: batches of the model.
        optimiser: of what is trained.
        device: to run on.
        anneal: lower the target from ``stage1_bits`` to ``stage2_bits`` by the schedule.

    Returns:
        The loss terms of every step.
    """
    model.to(device).train()
    batches = dataloader if isinstance(dataloader, Sized) else list(dataloader)
    schedule = BitSchedule.of(layer.config, max(len(batches), 1))
    logs = []
    for step, batch in enumerate(batches):
        if anneal:
            layer.target_bits = schedule.bits(step)
        output = model(_moved(batch, device), target_bits=layer.target_bits)
        terms = composite(layer.config, output["cm_ibq"], layer.target_bits)
        optimiser.zero_grad(set_to_none=True)
        (output["loss"] + terms.total).backward()
        optimiser.step()
        logs.append(_log(terms, layer.target_bits, output["loss"]))
    return logs
