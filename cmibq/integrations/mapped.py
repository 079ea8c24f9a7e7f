"""Packed layers whose codes a host has mapped from a file: tiled without two copies in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from cmibq import memory
from cmibq.nn import Joined, PackedEmbedding, PackedLinear

__all__ = ["tile_"]

_ALIGNED = 64
"""Bytes; kernels want tiles so."""


def tile_(model: nn.Module) -> None:
    """Bring the packed layers of a model into the form that kernels read, one after the other.

    transformers maps the weights from their file. Pages that have been read stay with the process
    as long as one tensor of the file does, so that codes and tiles would both be in memory; those
    of a layer are given back as soon as it has its tiles. All tiles lie in one block of memory: a
    block of huge pages for each layer would leave half a page unused, 0.15 GB in a model of 7B.

    Args:
        model: on the CPU; layers on other devices stay as they are. Layers that `accelerate_` joins
            are joined on the way.
    """
    mapped = memory.mapped_files(".safetensors")
    waiting = list(_waiting(model))
    sizes = [sum(layer._tiling.nbytes() for layer in joined.layers) for joined in waiting]
    block = torch.from_numpy(memory.scratch(sum(sizes) + _ALIGNED))
    at = -block.data_ptr() % _ALIGNED
    for joined, size in zip(waiting, sizes, strict=True):
        codes = [span for layer in joined.layers for span in _spans(layer)]
        joined.join_(block[at : at + size])
        at += size
        _give_back(codes, mapped)
    tables = [m for m in model.modules() if isinstance(m, PackedEmbedding)]
    _give_back([span for t in tables if t.qweight.is_cpu for span in _spans(t)], mapped)
    memory.clear()


def _waiting(model: nn.Module) -> Iterator[Joined]:
    """Return what has no tiles yet: layers that will be joined together, and single ones."""
    seen: set[int] = set()
    for module in model.modules():
        parts = getattr(module, "_parts", None)
        joined: Joined | None = None if parts is None else parts.qkv
        if isinstance(module, PackedLinear) and not isinstance(module, PackedEmbedding):
            joined = Joined([module])
        if joined is None or any(id(layer) in seen for layer in joined.layers):
            continue
        seen.update(id(layer) for layer in joined.layers)
        codes = [layer._buffers.get("qweight") for layer in joined.layers]
        if all(code is not None and code.is_cpu for code in codes):
            yield joined


def _spans(layer: PackedLinear) -> list[tuple[int, int]]:
    """Return addresses and bytes of the codes, scales and zero points of a layer."""
    found = (layer._buffers[name] for name in ("qweight", "scales", "zeros"))
    return [(t.data_ptr(), t.nbytes) for t in found if t is not None]


def _give_back(spans: Sequence[tuple[int, int]], mapped: Sequence[tuple[int, int]]) -> None:
    """Let the system take the pages of what is mapped; they are read again if somebody looks."""
    for start, size in spans:
        if any(a <= start and start + size <= b for a, b in mapped):
            memory.drop(start, size)
