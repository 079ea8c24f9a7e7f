"""What a bottleneck layer takes, and what it refuses."""

from __future__ import annotations

import torch
from torch import Tensor

from cmibq.errors import DataError
from cmibq.recipe.cm_ibq import CMIBQConfig

__all__ = ["HALVES", "checked", "half_wanted", "inside_backward"]

HALVES = (torch.float16, torch.bfloat16)


def checked(
    config: CMIBQConfig, features: Tensor, task_embedding: Tensor | None, training: bool
) -> tuple[Tensor, Tensor | None]:
    """Return features as [B, T, D] and the task of mode task, in the dtype of the work.

    Args:
        config: of the layer.
        features: [B, T, D] or [B, D].
        task_embedding: [B, E], or None.
        training: on a GPU NaN is then not looked for, that would wait for the device.

    Raises:
        DataError: shapes that do not fit, no tokens, NaN or infinity.
    """
    c = config
    if not isinstance(features, Tensor):
        raise DataError(f"features is a {type(features).__name__}; give a tensor")
    if features.ndim not in (2, 3) or features.shape[-1] != c.feature_dim:
        raise DataError(
            f"features has shape {list(features.shape)}; give [B, {c.feature_dim}] or"
            f" [B, T, {c.feature_dim}] (feature_dim)"
        )
    if features.ndim == 3 and not features.shape[1]:
        raise DataError(f"features has shape {list(features.shape)}; give at least one token")
    x = features[:, None] if features.ndim == 2 else features
    x = x if x.dtype is torch.float64 else x.float()
    _finite("features", x, training)
    if c.mode == "shared":
        return x, None
    want = [features.shape[0], c.task_dim]
    if task_embedding is None or list(task_embedding.shape) != want:
        got = None if task_embedding is None else list(task_embedding.shape)
        raise DataError(f"task_embedding has shape {got}; mode 'task' needs {want}")
    _finite("task_embedding", task_embedding, training)
    return x, task_embedding.to(x.dtype)


def _finite(name: str, x: Tensor, training: bool) -> None:
    """Refuse NaN and infinity."""
    if (training and not x.is_cpu) or torch.compiler.is_compiling():
        return
    if bool(x.detach().sum().isfinite()):
        return
    bad = (~x.detach().isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
    if bad:
        raise DataError(
            f"{name} holds NaN or infinity in {len(bad)} of {len(x)} samples (first: {bad[0]});"
            " look at what computed it, for example for an overflow in half precision"
        )


def half_wanted(kind: str) -> bool:
    """Tell whether autocast asks for bfloat16 products on a kind of device."""
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.bfloat16


def inside_backward() -> bool:
    """Tell whether a backward pass runs this again, as gradient checkpointing does."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
