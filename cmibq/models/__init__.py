"""Model families: what a family is made of (`Adapter`) and how a model folder is opened."""

from __future__ import annotations

from cmibq.models import hosts, internvl, llava, llava_next, llava_onevision, qwen2_vl
from cmibq.models.base import MODELS, Adapter, GroupRow, adapter_of
from cmibq.models.checks import (
    call_of,
    check_groups,
    check_others,
    check_weights,
    fitting_group,
    float32_block,
    verify_block,
    verify_groups,
)
from cmibq.models.composed_host import calm_of, compose_, settle_
from cmibq.models.decode import accelerate_
from cmibq.models.hosts import HostProcessor
from cmibq.models.load import LoadedModel, load, read_family, save_float, skeleton, target_widths
from cmibq.models.processor import load_processor
from cmibq.models.rows import linears_of

__all__ = [
    "MODELS",
    "Adapter",
    "GroupRow",
    "HostProcessor",
    "LoadedModel",
    "accelerate_",
    "adapter_of",
    "call_of",
    "calm_of",
    "check_groups",
    "check_others",
    "check_weights",
    "compose_",
    "fitting_group",
    "float32_block",
    "hosts",
    "internvl",
    "linears_of",
    "llava",
    "llava_next",
    "llava_onevision",
    "load",
    "load_processor",
    "qwen2_vl",
    "read_family",
    "save_float",
    "settle_",
    "skeleton",
    "target_widths",
    "verify_block",
    "verify_groups",
]
