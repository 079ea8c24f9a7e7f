"""The torch library that all operators are defined in, and the way to their NumPy views."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["LIBRARY", "kernel_ready", "torch_threads", "view"]

LIBRARY = torch.library.Library("cmibq", "FRAGMENT")


def view(t: torch.Tensor) -> NDArray[Any]:
    """Return a NumPy view of a CPU tensor; no copy (bfloat16 crosses as uint16)."""
    if t.requires_grad:
        t = t.detach()
    if t.dtype == torch.bfloat16:
        t = t.view(torch.uint16)
    return np.asarray(t.numpy())


def kernel_ready(*tensors: torch.Tensor) -> bool:
    """Tell whether the C kernels take these tensors: CPU, float32 (others use the reference)."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Set torch's thread count, which kernels follow, for a while.

    Args:
        count: threads; None leaves the count as it is.

    Yields:
        The count in force.

    Example:
        >>> with torch_threads(1) as count:
        ...     count
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
