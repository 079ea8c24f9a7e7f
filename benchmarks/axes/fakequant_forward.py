"""Fake quantisation forward, float32 [4096, 4096], into memory that exists already (`out=`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.case import Call, Case
from benchmarks.operands import matrix
from benchmarks.probes import Probes
from cmibq import arrays

__all__ = ["CASES", "KINDS", "operands"]

N = 4096
GROUP = 128
KINDS = {"per channel": N, f"group {GROUP}": GROUP, "variable bits": N}
"""Case -> elements that share a step size."""


def operands(kind: str) -> tuple[np.ndarray, ...]:
    """Return x as rows that share parameters, scale, lo, hi, all float32."""
    x = matrix(N, N).reshape(-1, KINDS[kind])
    rng = np.random.default_rng(1)
    bits = rng.integers(2, 9, len(x)) if kind == "variable bits" else np.full(len(x), 4)
    top = 2.0 ** (bits - 1)
    scale = (3.5 / top).astype(np.float32)
    return x, scale, (-top).astype(np.float32), (top - 1).astype(np.float32)


def ours(kind: str, threads: int) -> Call:
    x, *rest = operands(kind)
    return partial(arrays.fakequant, x, *rest, out=np.empty_like(x))


def eager(x: Any, scale: Any, lo: Any, hi: Any, out: Any) -> Any:
    """Round to the grid with torch, in place after the first step; no temporaries."""
    import torch

    torch.div(x, scale, out=out)
    return torch.round(torch.clamp(out, lo, hi, out=out), out=out).mul_(scale)


def tensors(kind: str) -> tuple[Any, ...]:
    """Return the operands as torch tensors, parameters as columns, and a result."""
    import torch

    x, *rest = (torch.from_numpy(a) for a in operands(kind))
    return x, *(p[:, None] for p in rest), torch.empty_like(x)


def torch_eager(kind: str, threads: int) -> Call:
    return partial(eager, *tensors(kind))


def formula(x: Any, scale: Any, lo: Any, hi: Any) -> Any:
    import torch

    return torch.round(torch.minimum(torch.maximum(x / scale, lo), hi)) * scale


def torch_compile(kind: str, threads: int) -> Call:
    """Compile the formula; inductor fuses it to one pass. Its result is recycled memory."""
    import torch

    torch._dynamo.reset()
    compiled = torch.compile(formula, dynamic=False)
    return _no_grad(compiled, *tensors(kind)[:4])


def torch_compile_out(kind: str, threads: int) -> Call:
    """Compile the formula with its result copied into `out`: still one pass."""
    import torch

    torch._dynamo.reset()
    compiled = torch.compile(lambda x, s, lo, hi, out: out.copy_(formula(x, s, lo, hi)))
    return _no_grad(compiled, *tensors(kind))


def _no_grad(function: Callable[..., object], *args: object) -> Call:
    import torch

    def call() -> object:
        with torch.no_grad():
            return function(*args)

    call()
    return call


def fake_quantize(kind: str, threads: int) -> Call:
    """torch.fake_quantize_per_channel_affine: one grid for all channels."""
    import torch

    x, scale, lo, hi = (torch.from_numpy(a) for a in operands(kind))
    zero = torch.zeros(len(x), dtype=torch.int32)
    return partial(
        torch.fake_quantize_per_channel_affine, x, scale, zero, 0, int(lo[0]), int(hi[0])
    )


def numpy_eager(kind: str, threads: int) -> Call:
    x, scale, lo, hi = (a if a.ndim == 2 else a[:, None] for a in operands(kind))
    out = np.empty_like(x)

    def call() -> None:
        np.divide(x, scale, out=out)
        np.clip(out, lo, hi, out=out)
        np.rint(out, out=out)
        np.multiply(out, scale, out=out)

    return call


def limit(p: Probes) -> float:
    """One read and one write of every element at the speed of a streaming copy."""
    return p.copy(8 * N * N)


def case(kind: str) -> Case:
    peers = {
        "torch.compile": torch_compile,
        "torch.compile out=": torch_compile_out,
        "torch eager out=": torch_eager,
        "NumPy out=": numpy_eager,
    }
    installed = ["torch.compile"]
    if kind != "variable bits":
        peers["torch.fake_quantize_per_channel_affine"] = fake_quantize
        installed.append("torch.fake_quantize_per_channel_affine")
    return Case(
        axis="fakequant_forward",
        name=kind,
        ours=partial(ours, kind),
        peers={name: partial(make, kind) for name, make in peers.items()},
        limit=limit,
        note="fp32 4096x4096, out=; limit: streaming copy of 8 B/element",
        flops=4.0 * N * N,
        moved=8.0 * N * N,
        default_malloc=tuple(installed),
        quick=kind == "per channel",
    )


CASES = [case(kind) for kind in KINDS]
