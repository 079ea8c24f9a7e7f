"""Few rows through a packed layer: one token (`qgemm_decode`), eight (`qgemm_small_batch`).

The weights come from DRAM: calls go round 256 MiB of distinct ones, as a decoder does. Activations
are float32; where a case does not say otherwise they are rounded to 8 bits per row inside the call,
which is what ONNX Runtime (accuracy level 4) and OpenVINO (dynamic quantisation) do too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.case import Call, Case, Factory, Scaled
from benchmarks.operands import ring, ring_length
from benchmarks.peers import ort, ov, torch_lowbit
from benchmarks.probes import Probes
from cmibq import memory
from cmibq.runtime import kernels

__all__ = ["CASES", "GROUP", "layer", "weight_bytes", "without_threads"]

GROUP = 128
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))
"""Outputs and inputs of the layers."""

MIXED = (2, 2, 4, 8)
"""Bits of 16 outputs in turn of a mixed layer: four on average, so the bytes of 4 bits."""


def weight_bytes(n: int, k: int, bits: float) -> float:
    """Return the bytes of codes and float16 scales."""
    return n * k * (bits / 8 + 2 / GROUP)


def layer(
    m: int,
    n: int,
    k: int,
    bits: int,
    act_bits: int,
    rng: np.random.Generator,
    *,
    group: int = GROUP,
    mixed: bool = False,
    bfloat16: bool = False,
) -> Call:
    """Return a product of float32 [m, k] with one packed layer [n, k], into existing memory.

    Args:
        m: rows.
        n: outputs, a multiple of 16.
        k: inputs.
        bits: of the codes.
        act_bits: 8 rounds the rows to 8 bits, 16 keeps them as they are.
        rng: for weights and rows.
        group: inputs that share a scale.
        mixed: 16 outputs in turn have the bits of `MIXED` instead.
        bfloat16: type of the rows and results.
    """
    core, groups = kernels(), k // group
    strips = np.resize(np.uint8(MIXED), n // 16) if mixed else None
    widths = np.full(n // 16, bits) if strips is None else strips
    codes = np.frombuffer(rng.bytes(int(widths.sum(dtype=int)) * 2 * k), np.uint8)
    scale = (0.01 + 0.01 * rng.random((n, groups), np.float32)).astype(np.float16)
    tiles = memory.empty((core.qgemm_tiles_bytes(n, k, groups, bits, 0, strips),), np.uint8)
    core.qgemm_repack(codes, scale.view(np.uint16), None, k, bits, strips, tiles)
    need = core.qlinear_workspace(m, n, k, groups, bits, strips, act_bits, int(bfloat16), 0)
    x, out = rng.standard_normal((m, k), dtype=np.float32), np.empty((m, n), np.float32)
    run = core.qlinear_f32
    if bfloat16:
        run, out = core.qlinear_bf16, np.empty((m, n), np.uint16)
        x = (x.view(np.uint32) >> 16).astype(np.uint16)
    fixed = (x, act_bits, tiles, groups, bits, strips, 0, None, None, None, 0, out)
    return partial(run, *fixed, np.empty(need, np.uint8))


def ours(m: int, n: int, k: int, bits: int, act_bits: int, mixed: bool, threads: int) -> Call:
    rng = np.random.default_rng(0)
    count = ring_length(n * k * bits // 8)
    return ring([layer(m, n, k, bits, act_bits, rng, mixed=mixed) for _ in range(count)])


def onnx(m: int, n: int, k: int, bits: int, threads: int) -> Scaled:
    return ort.matmul_nbits(m, n, k, bits, GROUP, threads)


def openvino(m: int, n: int, k: int, bits: int, dynamic: int | None, threads: int) -> Scaled:
    return ov.linear(m, n, k, bits, GROUP, threads, dynamic=dynamic)


def without_threads(make: Callable[..., Call], *args: object, **settings: object) -> Factory:
    return lambda threads: make(*args, **settings)


def peers(m: int, n: int, k: int, bits: int) -> dict[str, Factory]:
    """Return the peers of a width, or of the next wider one that they have."""
    wide = {3: 4}.get(bits, bits)
    four = max(wide, 4)
    found: dict[str, Factory] = {
        f"ORT MatMulNBits w{wide}": partial(onnx, m, n, k, wide),
        f"OpenVINO w{four}": partial(openvino, m, n, k, four, None),
        f"OpenVINO w{four} groups of 128": partial(openvino, m, n, k, four, GROUP),
    }
    if wide == 8:
        dynamic = without_threads(torch_lowbit.dynamic_int8, m, n, k, cycle=True)
        found["torch oneDNN dynamic w8a8"] = dynamic
    else:
        int4 = without_threads(torch_lowbit.int4pack, m, n, k, GROUP)
        found["torch int4pack bf16"] = int4
    return found


def limit(m: int, n: int, k: int, bits: int, p: Probes) -> float:
    """The bytes of the weight from DRAM, or its products on the vector unit."""
    return max(p.read(weight_bytes(n, k, bits)), p.vnni(2.0 * m * n * k))


def case(m: int, n: int, k: int, bits: int, *, act_bits: int = 8, mixed: bool = False) -> Case:
    width = "mixed" if mixed else f"w{bits}"
    name = f"{width} {n}x{k}" if m == 1 else f"{width} M={m} {n}x{k}"
    notes = [f"g{GROUP}, symmetric, ring of distinct weights"]
    if act_bits == 8:
        notes.append("float32 rows rounded to 8 bits in the call; torch int4pack takes bfloat16")
    else:
        name += " float32"
        notes.append("activations stay float32; the peers round theirs to 8 bits")
    if mixed:
        notes.append("2, 2, 4 and 8 bits in turn per 16 outputs, beside peers of 4 bits")
    elif bits == 3:
        notes.append("no peer has 3 bits: those of 4")
    elif bits == 2:
        notes.append("OpenVINO and torch have no 2 bits: theirs of 4")
    notes.append("limit: DRAM read" if m == 1 else "limit: the larger of DRAM read and VNNI")
    return Case(
        axis="qgemm_decode" if m == 1 else "qgemm_small_batch",
        name=name,
        ours=partial(ours, m, n, k, bits, act_bits, mixed),
        peers=peers(m, n, k, bits),
        limit=partial(limit, m, n, k, bits),
        note="; ".join(notes),
        flops=2.0 * m * n * k,
        moved=weight_bytes(n, k, bits) + 4.0 * m * (n + k),
        quick=bits == 4 and n == k and act_bits == 8 and not mixed,
    )


CASES = [
    *(case(1, n, k, bits) for n, k in SHAPES for bits in (2, 3, 4, 8)),
    case(1, 4096, 4096, 4, act_bits=16),
    case(1, 4096, 4096, 4, mixed=True),
    *(case(8, n, k, bits) for n, k in SHAPES for bits in (4, 8)),
]
