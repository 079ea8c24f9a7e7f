"""A host's processor for composed towers: pixels of both, image tokens by the anchor's alone."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any

import torch

from cmibq.errors import ConfigError, ModelError
from cmibq.models.packed import PackedProcessor

__all__ = ["pack_processor_", "processors_of", "record_of", "unpack_processor_"]


def record_of(processors: tuple[Any, Any] | None) -> dict[str, Any] | None:
    """Return image processors of anchor and augmenting tower as config.json takes them."""
    if processors is None:
        return None
    return {
        name: json.loads(one.to_json_string())
        for name, one in zip(("anchor", "augmenting"), processors, strict=True)
    }


def _processor(fields: dict[str, Any]) -> Any:
    import transformers

    name = str(fields.get("image_processor_type"))
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ModelError(f"transformers {transformers.__version__} has no image processor {name!r}")
    return kind.from_dict(dict(fields))


def processors_of(record: dict[str, Any]) -> tuple[Any, Any] | None:
    """Return the image processors in ``calm`` of a config.json, or None where it has none.

    Raises:
        ModelError: this version of transformers lacks one, or the entry is damaged.
    """
    try:
        told = record.get("processors")
        if told is None:
            return None
        return _processor(told["anchor"]), _processor(told["augmenting"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(
            f"calm in config.json is damaged (processors: {error}); copy it again"
        ) from error


@functools.cache
def _packing(kind: Any) -> Any:
    """Return a processor class that counts image tokens by the anchor's pixels, same name."""

    def replace_image_token(self: Any, image_inputs: Any, image_idx: int, **options: Any) -> Any:
        seen = torch.as_tensor(image_inputs["pixel_values"][image_idx])
        mine = self.image_processor.unpack(seen)["anchor"]
        return kind.replace_image_token(
            self, {**image_inputs, "pixel_values": [mine]}, 0, **options
        )

    def count(self: Any, image_sizes: Any = None, **options: Any) -> Any:
        (height, width), _ = self.image_processor.sizes
        options["crop_size"] = {"height": height, "width": width}
        return kind._get_num_multimodal_tokens(self, image_sizes, **options)

    def save(self: Any, folder: Any, **options: Any) -> Any:
        plain = copy.copy(self)
        unpack_processor_(plain)
        return plain.save_pretrained(folder, **options)

    members = {"replace_image_token": replace_image_token, "_get_num_multimodal_tokens": count}
    members["save_pretrained"] = save
    members["__reduce_ex__"] = lambda self, _: (_blank, (kind,), vars(self))  # for pickle
    return type(kind.__name__, (kind,), members | {"__module__": kind.__module__, "_plain": kind})


def _blank(kind: Any) -> Any:
    """Return a processor that packs, before pickle or copy fills it."""
    made = _packing(kind)
    return made.__new__(made)


def pack_processor_(processor: Any, augmenting: Any) -> PackedProcessor:
    """Let a host's processor make pixels of both towers, in place; what it saves is as before.

    Args:
        processor: of the host, with the anchor's ``image_processor``.
        augmenting: image processor of the augmenting tower.

    Returns:
        Its new ``image_processor``.

    Raises:
        ConfigError: the processor cuts images into tiles, or counts image tokens in a way that is
            not known.
    """
    both = PackedProcessor(processor.image_processor, augmenting)
    plain: Any = type(processor)
    if not hasattr(plain, "replace_image_token"):
        raise ConfigError(
            f"processor is {plain.__name__} of a transformers that counts image tokens elsewhere;"
            " use transformers 5"
        )
    processor.image_processor = both
    processor.__class__ = _packing(plain)
    return both


def unpack_processor_(processor: Any) -> None:
    """Give a host's processor back what `pack_processor_` took from it."""
    if isinstance(processor.image_processor, PackedProcessor):
        processor.image_processor = processor.image_processor["anchor"]
        processor.__class__ = processor._plain
