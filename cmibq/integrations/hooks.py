"""What is hooked into a host model: the bridge behind its projector, and the loss of a forward."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.integrations.bridge import NAME, Bridge, BridgeConfig, active
from cmibq.integrations.patches import Patches
from cmibq.integrations.request import CURRENT, Request
from cmibq.integrations.terms import terms_of
from cmibq.integrations.units import fill

__all__ = [
    "FORWARDS",
    "PROJECTORS",
    "add_bridge",
    "attached",
    "hook",
    "input_width",
    "projector_of",
]

PROJECTORS = ("multi_modal_projector", "visual.merger", "mm_projector", "connector._connector")
"""Where hosts keep the module that gives image features in the width of the text."""

FORWARDS = Patches()
"""``forward`` of the classes that have met a layer, and what a Trainer does for them."""

_MARK = "_cmibq_forward"


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


def _plain(module: nn.Module, keys: Any) -> None:
    """Let weights without any of the layer's load: a plain projector is a start for training."""
    mine = [k for k in keys.missing_keys if f".{NAME}." in f".{k}"]
    if len(mine) == len(module.get_submodule(NAME).state_dict()):
        keys.missing_keys[:] = [k for k in keys.missing_keys if k not in mine]


def attached(model: nn.Module) -> Bridge | None:
    """Return the bridge of a model, without a walk over all modules."""
    return active(getattr(projector_of(model), NAME, None))


def _project(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    """Send what the projector gives through the bridge that it holds (copies hold their own)."""
    made: Tensor = module.get_submodule(NAME)(output)
    return made


def _before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Send what the projector gets through the bridge that it holds."""
    bridge = active(getattr(module, NAME))
    return inputs if bridge is None else (bridge.code(inputs[0]), *inputs[1:])


def input_width(projector: nn.Module) -> int:
    """Return the width of what a projector takes; 0 if no layer of it says."""
    for name, module in projector.named_modules():
        if hasattr(module, "in_features") and NAME not in name.split("."):
            return int(module.in_features)
    return 0


def add_bridge(projector: nn.Module, options: BridgeConfig) -> Bridge:
    """Put a bridge behind a projector, or before it; a `nn.Sequential` runs its last child."""
    bridge = Bridge(options)
    device = next((p.device for p in projector.parameters()), torch.device("cpu"))
    if device.type != "meta":
        bridge.to(device)
    projector.add_module(NAME, bridge)
    projector.register_load_state_dict_post_hook(_plain)
    if options.position == "pre":
        projector.register_forward_pre_hook(_before)
    if not isinstance(projector, nn.Sequential):
        projector.register_forward_hook(_project)
    return bridge.train(projector.training)


def hook(model: nn.Module) -> None:
    """Make ``forward`` of the model's class note its request and add the loss; once per class.

    The class, because adapters such as PEFT call ``forward`` past the hooks of a module.
    """
    keep = getattr(model, "_keep_in_fp32_modules_strict", None)
    if isinstance(keep, set):
        keep.add(NAME)
    kind = type(model)
    if not hasattr(kind.forward, _MARK):
        FORWARDS.set(kind, "forward", _forwarding(kind.forward))


def _forwarding(original: Any) -> Any:
    """Wrap ``forward`` of a host."""

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        bridge = attached(self)
        if bridge is None:
            return original(self, *args, **kwargs)
        told = dict(kwargs)
        if args and isinstance(args[0], Tensor):
            told.setdefault("input_ids", args[0])
        wanted = bool(kwargs.pop("return_cm_ibq", False))
        kwargs.pop("cm_ibq_task", None)
        request = CURRENT.get()
        if request is not None:
            if request.empty:
                _fill(request, self, bridge, told)
            return original(self, *args, **kwargs)
        request = Request()
        token = CURRENT.set(request)
        try:
            _fill(request, self, bridge, told)
            output = original(self, *args, **kwargs)
        finally:
            CURRENT.reset(token)
        return _finish(self, bridge, request, output, wanted)

    setattr(forward, _MARK, True)
    return forward


def _fill(request: Request, model: nn.Module, bridge: Bridge, told: dict[str, Any]) -> None:
    """Fill a request; hosts with their own choke point do it there (`cmibq.integrations.llava`)."""
    request.empty = False
    request.scale = bridge.share if told.get("num_items_in_batch") is not None else 1.0
    request.given = told.get("cm_ibq_task")
    if not hasattr(model, "prepare_inputs_labels_for_multimodal"):
        fill(request, model, bridge, told)


def _finish(model: nn.Module, bridge: Bridge, request: Request, output: Any, wanted: bool) -> Any:
    """Add the terms to the loss."""
    loss = getattr(output, "loss", None)
    if model.training and bridge.enabled and loss is not None:
        terms = terms_of(bridge, request)
        if terms is not None:
            bridge.last_terms = {k: v.detach() for k, v in terms._asdict().items()}
            bridge.last_terms["task"] = loss.detach()
        if bridge.add_loss:
            added = bridge.nothing() if terms is None else request.scale * terms.total
            output.loss = loss + added.to(loss.device)
    if wanted:
        output["cm_ibq"] = request.found
    return output
