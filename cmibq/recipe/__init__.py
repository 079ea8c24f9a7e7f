"""What a run does: frozen dataclasses, the same for YAML files, flags and Python.

Flag = YAML key = field. Fields are checked when the object is made, so that a wrong value is told
before a model is loaded; what needs files or registries is checked by `cmibq.ptq.check`.
"""

from __future__ import annotations

from cmibq.recipe.base import MOST_THREADS, SCOPES, parse_model_args, parse_scope
from cmibq.recipe.evaluate import EvalConfig
from cmibq.recipe.identity import fingerprint, weights_hash
from cmibq.recipe.quant import QuantRecipe
from cmibq.recipe.sizes import format_size, parse_size

__all__ = [
    "MOST_THREADS",
    "SCOPES",
    "EvalConfig",
    "QuantRecipe",
    "fingerprint",
    "format_size",
    "parse_model_args",
    "parse_scope",
    "parse_size",
    "weights_hash",
]
