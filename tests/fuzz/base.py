"""A call with its oracle, and the torch references as functions of arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import cmibq.ops  # noqa: F401, the references are found among the modules

__all__ = ["Call", "op"]


class Call(NamedTuple):
    """A function, its keyword arguments, what it should return and how nearly."""

    function: Callable[..., Any]
    given: dict[str, Any]
    oracle: Callable[..., Any] | None
    tolerance: float | np.ndarray = 0.0
    out: int | None = None  # which result `out=` takes


def op(name: str, attribute: str) -> Callable[..., Any]:
    """Return a torch reference as a function of arrays, by module: ops has functions only."""
    function = getattr(sys.modules[f"cmibq.ops.{name}"], attribute)

    def on_arrays(*args: Any) -> Any:
        tensors = (torch.from_numpy(a.copy()) if isinstance(a, np.ndarray) else a for a in args)
        return function(*tensors)

    return on_arrays
