"""Layers of a frozen anchor that are computed again in the backward pass instead of kept."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmibq.models.composition import recomputes

__all__ = ["recompute_", "restore_"]

_PLAIN = "_cmibq_plain"


@functools.cache
def _recomputing(plain: Any) -> type[nn.Module]:
    """Return the class of a layer with a forward that recomputes where a composed tower asks."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = functools.partial(plain.forward, self)
        given = (*args, *kwargs.values())
        grows = any(isinstance(x, Tensor) and x.requires_grad for x in given)
        if not (grows and recomputes() and torch.is_grad_enabled()):
            return run(*args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def reduce(self: Any, _: Any) -> Any:
        return _blank, (plain,), vars(self)

    members = {"forward": forward, _PLAIN: plain, "__module__": plain.__module__}
    members["__reduce_ex__"] = reduce  # pickle finds no class under this name
    return type(plain.__name__, (plain,), members)


def _blank(plain: Any) -> nn.Module:
    """Return a layer that recomputes, before pickle or copy fills it."""
    made = _recomputing(plain)
    return made.__new__(made)


def recompute_(block: nn.Module) -> None:
    """Let a layer recompute inside composed towers that want it; elsewhere it stays as it was.

    The layer's class is replaced, not its ``forward``: copies and replicas of the layer then run on
    their own parameters. Hooks, and so fusions, are outside of what is recomputed. Layers of frozen
    towers draw no random numbers, so none are put back.
    """
    if not hasattr(block, _PLAIN):
        plain: Any = type(block)
        block.__class__ = _recomputing(plain)


def restore_(block: nn.Module) -> None:
    """Give a layer its own class back."""
    plain = getattr(block, _PLAIN, None)
    if plain is not None:
        block.__class__ = plain
