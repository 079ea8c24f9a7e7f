"""cmibq: quantise and compose vision-language models on CPUs.

Importing the package loads neither torch nor the C extension; names resolve on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME: dict[str, str] = {
    "CmibqError": "cmibq.errors",
    "EvalConfig": "cmibq.recipe",
    "QuantGrid": "cmibq.quant.grid",
    "QuantSpec": "cmibq.quant.spec",
    "QParams": "cmibq.quant.spec",
    "QuantRecipe": "cmibq.recipe",
    "PackedLinear": "cmibq.nn",
    "evaluate": "cmibq.eval",
    "load": "cmibq.eval",
    "open_model": "cmibq.eval",
    "quantize": "cmibq.ptq",
    "CALMCompositionModule": "cmibq.fusion",
    "CALMConfig": "cmibq.recipe.calm",
    "CALMVisionTower": "cmibq.models.composed",
    "CMIBQConfig": "cmibq.recipe.cm_ibq",
    "IBQuantizedLayer": "cmibq.nn.ib_layer",
    "CompressedLatent": "cmibq.nn.latent",
    "ImportanceEstimationNetwork": "cmibq.alloc.bottleneck",
    "BitAllocationNetwork": "cmibq.alloc.bottleneck",
    "DifferentiableQuantizer": "cmibq.quant.quantizers.channel_bits",
}
"""Public name -> home module: the map of the house."""

_SUBPACKAGES = ("arrays",)

__all__ = ["__version__", *_HOME, *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"cmibq.{name}")
    raise AttributeError(f"module 'cmibq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
