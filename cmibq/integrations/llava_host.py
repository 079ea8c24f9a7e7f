"""What the methods of the original LLaVA's classes do in addition (`cmibq.integrations.llava`)."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.integrations.bottleneck import check
from cmibq.integrations.bridge import NAME, Bridge, bridge_of
from cmibq.integrations.hooks import attached
from cmibq.integrations.request import CURRENT, Request, Units
from cmibq.integrations.units import describe

__all__ = ["SAVING", "loaded", "marked", "named_with_state", "preparing", "with_callback"]

IMAGE = -200  # llava.constants.IMAGE_TOKEN_INDEX
SAVING = "_cmibq_saving"
"""Of a module whose ``named_parameters`` are being saved."""


def _units(images: Any, per_row: Tensor) -> Units:
    """Return one unit per crop. A row without an image mark has one image all the same: zeros."""
    rows = torch.arange(len(per_row), device=per_row.device).repeat_interleave(per_row)
    if isinstance(images, (list, tuple)) or images.ndim == 5:
        crops = [len(image) if image.ndim == 4 else 1 for image in images]
        return Units(rows.repeat_interleave(torch.tensor(crops, device=rows.device)))
    return Units(rows)


def _fill(request: Request, model: nn.Module, bridge: Bridge, told: dict[str, Any]) -> None:
    """Write into a request what the arguments of the choke point say."""
    ids, images = told["input_ids"], told["images"]
    if images is None or ids is None or ids.shape[1] == 1:
        return
    marks = ids == IMAGE
    if told.get("attention_mask") is not None:
        marks = marks & told["attention_mask"].bool()
    count = marks.sum(1)
    request.kinds = (_units(images, count.clamp(min=1)),)
    request.seen = count > 0
    request.embedding = request.given
    describe(request, model, bridge, ids, [IMAGE], told)


def preparing(original: Any) -> Any:
    """Wrap ``prepare_inputs_labels_for_multimodal``: training and ``generate`` both pass it."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def prepare_inputs_labels_for_multimodal(self: Any, *args: Any, **kwargs: Any) -> Any:
        bridge = attached(self)
        if bridge is None:
            return original(self, *args, **kwargs)
        told = dict(signature.bind(self, *args, **kwargs).arguments)
        told.setdefault("images", None)
        request = CURRENT.get()
        if request is not None:
            _fill(request, self, bridge, told)
            return original(self, *args, **kwargs)
        request = Request(empty=False)
        token = CURRENT.set(request)
        try:
            _fill(request, self, bridge, told)
            return original(self, *args, **kwargs)
        finally:
            CURRENT.reset(token)

    return prepare_inputs_labels_for_multimodal


def marked(original: Any) -> Any:
    """Wrap a method of the trainer after which, or in which, weights are saved."""

    @functools.wraps(original)
    def saving(self: Any, *args: Any, **kwargs: Any) -> Any:
        last = original.__name__ == "save_state"  # the host saves its adapter right after
        setattr(self.model, SAVING, True)
        try:
            return original(self, *args, **kwargs)
        finally:
            setattr(self.model, SAVING, last)

    return saving


def with_callback(original: Any, wanted: Callable[[], bool]) -> Any:
    """Wrap a trainer's ``__init__``: a model with a layer brings the callback.

    Args:
        original: of the host.
        wanted: whether a layer was asked for, so that a model without one is an error.
    """

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from cmibq.integrations.trainer import cm_ibq_callback

        original(self, *args, **kwargs)
        if bridge_of(self.model) is not None:
            self.add_callback(cm_ibq_callback())
        elif wanted():
            raise ModelError(
                "install() was given a CM-IBQ layer, but the model has none; the host must build"
                " its projector after install(): give --vision_tower, or load a checkpoint of it"
            )

    return __init__


def named_with_state(original: Any) -> Any:
    """Wrap ``named_parameters``: an adapter is made of these, and the layer has buffers as well.

    They are added only while the trainer saves.
    """

    @functools.wraps(original)
    def named_parameters(self: Any, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        yield from original(self, *args, **kwargs)
        if getattr(self, SAVING, False):
            yield from _state(self)

    return named_parameters


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    known = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if f".{NAME}." in name and name in known:
            yield name, buffer


def _restore(model: nn.Module, folder: str) -> None:
    """Load the layer of an adapter as it was saved; the host loads all of it in half precision."""
    path = os.path.join(folder, "mm_projector.bin")
    if attached(model) is None or not os.path.isfile(path):
        return
    saved = torch.load(path, map_location="cpu", weights_only=True)
    part = {name: value for name, value in saved.items() if f".{NAME}." in name}
    model.load_state_dict(part, strict=False)


def loaded(original: Any, wanted: dict[str, Any]) -> Any:
    """Wrap ``load_pretrained_model``: an adapter's layer is restored, and checked."""

    @functools.wraps(original)
    def load_pretrained_model(
        model_path: str, model_base: str | None, *args: Any, **kwargs: Any
    ) -> Any:
        found = original(model_path, model_base, *args, **kwargs)
        model = found[1]
        if model_base is not None:
            _restore(model, model_path)
        if wanted and attached(model) is None:
            raise ModelError(
                f"{model_path} has no CM-IBQ layer, but install() was given one; it would run"
                " unquantised: train it, or call install() without a layer"
            )
        check(model.eval())
        return found

    return load_pretrained_model
