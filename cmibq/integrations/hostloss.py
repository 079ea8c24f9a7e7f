"""A host model as stage two calls it, and which of its parameters it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, distributed, nn

from cmibq import models
from cmibq.data.batch import IGNORE
from cmibq.errors import ModelError
from cmibq.integrations.bridge import NAME, Bridge
from cmibq.integrations.hooks import projector_of
from cmibq.train.peers import world

__all__ = ["HostLoss", "host_parameters", "recompute_", "shared_loss"]


class HostLoss(nn.Module):
    """A host model as `stage_two_finetune` calls it.

    Args:
        model: with a layer attached; its own loss stays that of the task.
        bridge: that layer's.
    """

    def __init__(self, model: nn.Module, bridge: Bridge) -> None:
        super().__init__()
        self.model = model
        bridge.add_loss = bridge.find_terms = False  # the stage finds them

    def forward(self, batch: Mapping[str, Tensor], target_bits: float | None = None) -> Any:
        """Return the loss of the task, and what the layer found."""
        output = self.model(**batch, use_cache=False, return_cm_ibq=True)
        return {"loss": shared_loss(output["loss"], batch["labels"]), "cm_ibq": output["cm_ibq"]}


def shared_loss(loss: Tensor, labels: Tensor) -> Tensor:
    """Return a loss whose average over processes is the mean over the answer tokens of all.

    Args:
        loss: mean over the answer tokens of this process.
        labels: int64 [B, T] of this process.
    """
    if world() == 1:
        return loss
    own = (labels != IGNORE).sum().to(loss.dtype)
    total = own.clone()
    distributed.all_reduce(total)
    return loss * (own * world() / total)


def host_parameters(loaded: models.LoadedModel, parts: Sequence[str]) -> list[nn.Parameter]:
    """Return what stage two trains beside the layer.

    Args:
        loaded: the model and its family.
        parts: of lm, projector, vision.

    Raises:
        ModelError: the model has no such parts.
    """
    model, adapter = loaded.model, loaded.adapter
    mark = f".{NAME}."
    projector, own = projector_of(model), list[nn.Module]()
    if "projector" in parts and projector is not None:
        own.append(projector)
    if "lm" in parts:
        own += [adapter.decoder(model), adapter.lm_head(model)]
    chosen = {id(p) for module in own for p in module.parameters()}
    named = list(model.named_parameters())
    if "vision" in parts:
        inner = {id(p) for p in (projector.parameters() if projector is not None else ())}
        chosen |= {id(p) for n, p in named if "visi" in n or ".visual." in n} - inner
    found = [p for n, p in named if id(p) in chosen and mark not in n]
    if parts and not found:
        raise ModelError(f"the model has no parameters in {', '.join(parts)}; change train")
    return found


def recompute_(model: nn.Module) -> None:
    """Let a model compute its activations again in the backward pass instead of keeping them."""
    host: Any = model
    turn_on = getattr(host, "activation_checkpointing_enable", None)
    turn_on = turn_on or host.gradient_checkpointing_enable
    turn_on({"use_reentrant": False})
