"""Products of float32 matrices and batches, into memory that exists already (`out=`)."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

from benchmarks.case import Call, Case
from benchmarks.probes import Probes
from cmibq import arrays

__all__ = ["CASES", "SHAPES", "operands"]

SHAPES = {
    "577x1024x1024": (1, 577, 1024, 1024, True),
    "2048x2048x2048": (1, 2048, 2048, 2048, False),
    "QK 577x64": (64, 577, 577, 64, True),
    "PV 577x64": (64, 577, 64, 577, False),
}
"""Case -> batch, M, N, K, and whether the right operand is kept transposed, as a weight or keys."""


@lru_cache(maxsize=1)
def operands(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a [.., M, K], b [.., K, N] (maybe a transposed view) and memory for the result."""
    batch, m, n, k, turned = SHAPES[name]
    rng = np.random.default_rng(0)
    a = rng.standard_normal((batch, m, k), dtype=np.float32)
    b = rng.standard_normal((batch, n, k) if turned else (batch, k, n), dtype=np.float32)
    b = b.swapaxes(1, 2) if turned else b
    out = np.empty((batch, m, n), np.float32)
    return (a, b, out) if batch > 1 else (a[0], b[0], out[0])


def ours(name: str, precision: str, threads: int) -> Call:
    a, b, out = operands(name)
    return partial(arrays.gemm, a, b, precision=precision, out=out)


def numpy(name: str, threads: int) -> Call:
    a, b, out = operands(name)
    return partial(np.matmul, a, b, out=out)


def torch_matmul(name: str, threads: int) -> Call:
    import torch

    a, b, out = (torch.from_numpy(x) for x in operands(name))
    return partial(torch.matmul, a, b, out=out)


def limit(flops: float, p: Probes) -> float:
    return p.fma(flops)


def case(name: str, precision: str = "float32") -> Case:
    batch, m, n, k, _ = SHAPES[name]
    flops = 2.0 * batch * m * n * k
    moved = 4.0 * batch * (m * k + k * n + m * n)
    return Case(
        axis="gemm_f32",
        name=name if precision == "float32" else f"{name} {precision}",
        ours=partial(ours, name, precision),
        peers={
            "NumPy OpenBLAS": partial(numpy, name),
            "torch.matmul": partial(torch_matmul, name),
        },
        limit=partial(limit, flops),
        note=f"batch {batch}, out=; limit: FMA peak. torch is MKL, with AVX-512 only on Intel",
        flops=flops,
        moved=moved,
        quick=precision == "float32" and name.startswith(("577", "QK")),
    )


SPLIT = "bfloat16x3"
"""As exact as float32, by six products of bfloat16: worth it where there is AMX."""

CASES = [case(name) for name in SHAPES]
CASES += [case(name, SPLIT) for name in SHAPES if "x" in name.split()[0]]
