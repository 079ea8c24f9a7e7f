"""Model families: what a family is made of (`Adapter`) and how a model folder is opened."""

from __future__ import annotations

from cmibq.models import llava
from cmibq.models.base import MODELS, Adapter, GroupRow, adapter_of, check_groups, check_weights
from cmibq.models.decode import accelerate_
from cmibq.models.load import (
    LoadedModel,
    load,
    load_processor,
    read_family,
    save_float,
    skeleton,
    target_widths,
)

__all__ = [
    "MODELS",
    "Adapter",
    "GroupRow",
    "LoadedModel",
    "accelerate_",
    "adapter_of",
    "check_groups",
    "check_weights",
    "llava",
    "load",
    "load_processor",
    "read_family",
    "save_float",
    "skeleton",
    "target_widths",
]
