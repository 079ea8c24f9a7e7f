"""torch: its 4-bit and 8-bit weight-only products, and int8 products with dynamic quantisation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.operands import ring, ring_length

__all__ = ["dense", "dynamic_int8", "int4pack", "int8pack", "int_mm"]

Call = Callable[[], object]


def _count(size: int, cycle: bool) -> int:
    return ring_length(size) if cycle else 1


def int4pack(m: int, n: int, k: int, group: int, *, cycle: bool = True) -> Call:
    """torch._weight_int4pack_mm_for_cpu, bfloat16 activations (its fast type).

    Args:
        m: rows of x.
        n: outputs.
        k: inputs.
        group: inputs that share a scale.
        cycle: through 256 MiB of distinct weights; False for one weight.
    """
    import torch

    x = torch.randn(m, k).to(torch.bfloat16)
    codes = torch.randint(0, 16, (n, k), dtype=torch.int32)
    packed = torch._convert_weight_to_int4pack_for_cpu(codes, 2)
    scales = torch.full((k // group, n, 2), 0.01, dtype=torch.bfloat16)
    weights = [packed.clone() for _ in range(_count(n * k // 2, cycle))]
    multiply = torch._weight_int4pack_mm_for_cpu
    return ring([_bind(multiply, x, weight, group, scales) for weight in weights])


def int8pack(m: int, n: int, k: int, *, cycle: bool = True) -> Call:
    """torch._weight_int8pack_mm, bfloat16 activations, one scale per output."""
    import torch

    x, scale = torch.randn(m, k).to(torch.bfloat16), torch.full((n,), 0.01, dtype=torch.bfloat16)
    return ring(
        [
            _bind(torch._weight_int8pack_mm, x, _int8(n, k, seed), scale)
            for seed in range(_count(n * k, cycle))
        ]
    )


def dynamic_int8(m: int, n: int, k: int, *, cycle: bool = False, engine: str = "onednn") -> Call:
    """torch.ops.quantized.linear_dynamic: W8A8, x quantised in the call (scale of the whole x).

    Args:
        m: rows of x.
        n: outputs.
        k: inputs.
        cycle: through 256 MiB of distinct weights.
        engine: "onednn" or "fbgemm".
    """
    import torch

    warnings.filterwarnings("ignore", "torch.quantize_per", UserWarning)
    torch.backends.quantized.engine = engine
    x, calls = torch.randn(m, k), []
    for seed in range(_count(n * k, cycle)):
        zero = torch.zeros(n, dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(
            _int8(n, k, seed), torch.full((n,), 0.01, dtype=torch.double), zero, 0
        )
        packed = torch.ops.quantized.linear_prepack(weight, None)
        calls.append(_bind(torch.ops.quantized.linear_dynamic, x, packed, False))
    return ring(calls)


def int_mm(m: int, n: int, k: int) -> Call:
    """torch._int_mm, int8 to int32, without quantising or scaling anything: less work than ours."""
    import torch

    x, weight = _int8(m, k, 1), _int8(n, k, 2)
    return _bind(torch._int_mm, x, weight.T)


def dense(m: int, n: int, k: int, dtype: str = "float32", *, cycle: bool = True) -> Call:
    """torch.mm with the float weight, into memory that exists already."""
    import torch

    kind = getattr(torch, dtype)
    x, out = torch.randn(m, k).to(kind), torch.empty(m, n, dtype=kind)
    count = _count(n * k * kind.itemsize, cycle)
    weights = [torch.randn(n, k).to(kind) for _ in range(count)]
    return ring([lambda w=w: torch.mm(x, w.T, out=out) for w in weights])


def _int8(rows: int, cols: int, seed: int) -> Any:
    import torch

    raw = np.random.default_rng(seed).bytes(rows * cols)
    return torch.frombuffer(bytearray(raw), dtype=torch.int8).view(rows, cols)


def _bind(function: Callable[..., object], *args: object) -> Call:
    return lambda: function(*args)
