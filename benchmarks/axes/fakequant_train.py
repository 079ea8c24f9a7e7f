"""Fake quantisation forward and backward with the gradient of the step sizes (LSQ), 4096x4096."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.axes.fakequant_forward import KINDS, N, operands
from benchmarks.case import Call, Case
from benchmarks.probes import Probes
from cmibq import ops

__all__ = ["CASES"]


def gradient() -> np.ndarray:
    """Return the gradient of the output, not constant and not symmetric."""
    return np.random.default_rng(2).standard_normal((N, N), dtype=np.float32)


def step(function: Callable[..., Any], kind: str, columns: bool) -> Call:
    """Return a training step: forward, backward, gradients of x and of the step sizes.

    Args:
        function: of x, scale, lo, hi.
        kind: of the case.
        columns: parameters as a column [rows, 1], as formulas need them.
    """
    import torch

    x, *grid = (torch.from_numpy(a) for a in operands(kind))
    g = torch.from_numpy(gradient()).view(x.shape)
    scale, lo, hi = (p[:, None] for p in grid) if columns else grid
    x, scale = x.detach().requires_grad_(), scale.clone().requires_grad_()

    def call() -> object:
        return torch.autograd.grad(function(x, scale, lo, hi), (x, scale), g)

    call()
    return call


def formula(x: Any, scale: Any, lo: Any, hi: Any) -> Any:
    """LSQ as its paper's appendix writes it: the rounding error is detached."""
    import torch

    v = torch.minimum(torch.maximum(x / scale, lo), hi)
    return (v + (torch.round(v) - v).detach()) * scale


def torch_eager(kind: str, threads: int) -> Call:
    return step(formula, kind, columns=True)


def torch_compile(kind: str, threads: int) -> Call:
    """Compile the formula, forward and backward; inductor fuses each to a pass or two."""
    import torch

    torch._dynamo.reset()
    return step(torch.compile(formula, dynamic=False), kind, columns=True)


def torch_learnable(kind: str, threads: int) -> Call:
    """torch._fake_quantize_learnable_per_channel_affine: one grid for all channels."""
    import torch

    top = operands(kind)[3]

    def function(x: Any, scale: Any, lo: Any, hi: Any) -> Any:
        low, high = -int(top[0]) - 1, int(top[0])
        zero = torch.zeros(len(scale))
        learnable = torch._fake_quantize_learnable_per_channel_affine
        return learnable(x, scale, zero, 0, low, high, 1.0)

    return step(function, kind, columns=False)


def ours(kind: str, threads: int) -> Call:
    """The torch op with its gradient: recycled memory, as torch's own allocator here."""
    return step(ops.fakequant, kind, columns=False)


def limit(p: Probes) -> float:
    """20 bytes per element: read x, write y; read x and its output's gradient, write x's."""
    return p.copy(20 * N * N)


def case(kind: str) -> Case:
    peers = {"torch.compile LSQ": torch_compile, "torch eager LSQ": torch_eager}
    if kind != "variable bits":
        peers["torch learnable per channel"] = torch_learnable
    return Case(
        axis="fakequant_train",
        name=kind,
        ours=partial(ours, kind),
        peers={name: partial(make, kind) for name, make in peers.items()},
        limit=limit,
        note="fp32 4096x4096, torch.autograd.grad of the op; limit: 20 B/element at the speed of a "
        "streaming copy",
        flops=12.0 * N * N,
        moved=20.0 * N * N,
        default_malloc=("torch.compile LSQ",),
        quick=kind == "per channel",
    )


CASES = [case(kind) for kind in KINDS]
