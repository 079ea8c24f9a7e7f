"""What is hooked into a host model: the bridge behind its projector, and the loss of a forward."""

from __future__ import annotations

from contextvars import Token
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.integrations.bridge import NAME, Bridge, BridgeConfig
from cmibq.integrations.request import CURRENT, Request
from cmibq.integrations.terms import terms_of
from cmibq.integrations.units import fill

__all__ = ["PROJECTORS", "add_bridge", "attached", "hook", "projector_of"]

PROJECTORS = ("multi_modal_projector", "visual.merger", "mm_projector")
"""Where hosts keep the module that gives image features in the width of the text."""

_HOOKED = "_cmibq_hooked"


def projector_of(model: nn.Module) -> nn.Module | None:
    """Return the module that gives image features in the width of the text, or None."""
    for prefix in ("", "model.", "model.model."):
        for name in PROJECTORS:
            owner: Any = model
            for part in (prefix + name).split("."):
                owner = getattr(owner, part, None)
            if isinstance(owner, nn.Module):
                return owner
    return None


def attached(model: nn.Module) -> Bridge | None:
    """Return the bridge of a model, without a walk over all modules."""
    found = getattr(projector_of(model), NAME, None)
    return found if isinstance(found, Bridge) else None


def _project(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    """Send what the projector gives through the bridge that it holds (copies hold their own)."""
    made: Tensor = module.get_submodule(NAME)(output)
    return made


def add_bridge(projector: nn.Module, options: BridgeConfig) -> Bridge:
    """Put a bridge behind a projector; a `nn.Sequential` runs it as its last child."""
    bridge = Bridge(options)
    device = next((p.device for p in projector.parameters()), torch.device("cpu"))
    if device.type != "meta":
        bridge.to(device)
    projector.add_module(NAME, bridge)
    if not isinstance(projector, nn.Sequential):
        projector.register_forward_hook(_project)
    return bridge.train(projector.training)


def hook(model: nn.Module) -> None:
    """Make the model's forward note its request and add the loss; once per model."""
    if getattr(model, _HOOKED, False):
        return
    setattr(model, _HOOKED, True)
    keep = getattr(model, "_keep_in_fp32_modules_strict", None)
    if isinstance(keep, set):
        keep.add(NAME)
    model.register_forward_pre_hook(_before, with_kwargs=True)
    model.register_forward_hook(_after, with_kwargs=True, always_call=True)


def _before(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Set the request of this call, unless an outer module has."""
    told = dict(kwargs)
    if args and isinstance(args[0], Tensor):
        told.setdefault("input_ids", args[0])
    wanted = bool(kwargs.pop("return_cm_ibq", False))
    kwargs.pop("cm_ibq_task", None)
    request, bridge = CURRENT.get(), attached(model)
    if bridge is None or (request is not None and not request.empty):
        return args, kwargs
    if request is None:
        request = Request(owner=model, wanted=wanted)
        request.token = CURRENT.set(request)
    request.empty = False
    try:
        _fill(request, model, bridge, told)
    except BaseException:
        _leave(request, model)
        raise
    return args, kwargs


def _fill(request: Request, model: nn.Module, bridge: Bridge, told: dict[str, Any]) -> None:
    """Fill a request; hosts with their own choke point do it there (`cmibq.integrations.llava`)."""
    request.scale = bridge.share if told.get("num_items_in_batch") is not None else 1.0
    request.given = told.get("cm_ibq_task")
    if not hasattr(model, "prepare_inputs_labels_for_multimodal"):
        fill(request, model, bridge, told)


def _leave(request: Request, model: nn.Module) -> None:
    if request.owner is model and isinstance(request.token, Token):
        CURRENT.reset(request.token)
        request.token = None


def _after(model: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """Add the terms to the loss; let go of the request."""
    request, bridge = CURRENT.get(), attached(model)
    if request is None or bridge is None or request.owner is not model:
        return output
    _leave(request, model)
    loss = getattr(output, "loss", None)
    if model.training and bridge.enabled and loss is not None:
        terms = terms_of(bridge, request)
        if terms is not None:
            bridge.last_terms = {k: v.detach() for k, v in terms._asdict().items()}
            bridge.last_terms["task"] = loss.detach()
        if bridge.add_loss:
            added = bridge.nothing() if terms is None else request.scale * terms.total
            output.loss = loss + added.to(loss.device)
    if request.wanted and output is not None:
        output["cm_ibq"] = request.found
    return output
