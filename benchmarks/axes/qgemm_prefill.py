"""Many rows through a packed layer: int8 products of float32 rows rounded inside the call.

`qgemm_prefill` has weights of 2 to 8 bits in groups of 128, `qgemm_w8a8` 8 bits with a scale per
output, as torch's dynamic quantisation has it. Cases that end with float32 or bfloat16 keep the
rows as they are and are compared with dense products of that type.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.axes.qgemm import GROUP, layer, weight_bytes, without_threads
from benchmarks.case import Call, Case, Factory, Scaled
from benchmarks.peers import ort, ov, torch_lowbit
from benchmarks.probes import Probes

__all__ = ["CASES"]

N = K = 4096
ROWS = (64, 256, 1024)
WIDTHS = (4, 2, 3, 8)


def ours(m: int, bits: int, group: int, threads: int) -> Call:
    return layer(m, N, K, bits, 8, np.random.default_rng(0), group=group)


def exact(m: int, bfloat16: bool, threads: int) -> Call:
    return layer(m, N, K, 4, 16, np.random.default_rng(0), bfloat16=bfloat16)


def openvino(m: int, bits: int, group: int, dynamic: int, precision: str, threads: int) -> Scaled:
    settings = {"dynamic": dynamic, "precision": precision, "ring": False}
    return ov.linear(m, N, K, bits, group, threads, **settings)


def onnx(m: int, bits: int, threads: int) -> Scaled:
    return ort.matmul_nbits(m, N, K, bits, GROUP, threads, ring=False)


def onnx_int8(m: int, threads: int) -> Scaled:
    return ort.dynamic_int8(m, N, K, threads)


def grouped_peers(m: int, bits: int) -> dict[str, Factory]:
    """Return the peers of a width, or of the next wider one that they have."""
    wide = {3: 4}.get(bits, bits)
    four = max(wide, 4)
    dense = without_threads(torch_lowbit.dense, m, N, K, "bfloat16", cycle=False)
    found: dict[str, Factory] = {
        f"OpenVINO w{four}, rows in groups of 128": partial(openvino, m, four, GROUP, GROUP, "f32"),
        f"OpenVINO w{four}, bfloat16": partial(openvino, m, four, GROUP, 0, "bf16"),
        f"ORT MatMulNBits w{wide}": partial(onnx, m, wide),
        "torch.mm bfloat16, weight not packed": dense,
    }
    if wide < 8 and m == min(ROWS):
        int4 = without_threads(torch_lowbit.int4pack, m, N, K, GROUP, cycle=False)
        found["torch int4pack bf16"] = int4
    return found


def limit(m: int, p: Probes) -> float:
    """The products on the vector unit; the tile unit, where there is one, is in the note."""
    return p.vnni(2.0 * m * N * K)


def tile_limit(m: int, p: Probes) -> float:
    return p.int8(2.0 * m * N * K)


def case(axis: str, name: str, m: int, bits: int, group: int, peers: dict[str, Factory]) -> Case:
    notes = ["float32 rows rounded to 8 bits in the call; limit: VNNI peak"]
    if axis == "qgemm_prefill":
        notes.append(f"g{GROUP}, symmetric; torch int4pack only at M=64 (slower than all others)")
    if bits in (2, 3):
        notes.append("peers without this width: the next wider one they have")
    return Case(
        axis=axis,
        name=name,
        ours=partial(ours, m, bits, group),
        peers=peers,
        limit=partial(limit, m),
        note="; ".join(notes),
        also={"the best int8 peak of this CPU": partial(tile_limit, m)},
        flops=2.0 * m * N * K,
        moved=weight_bytes(N, K, bits) + 4.0 * m * (N + K),
        quick=m == 256 and bits in (4, 8) and (axis == "qgemm_w8a8" or bits == 4),
    )


def prefill(m: int, bits: int) -> Case:
    name = f"w{bits} M={m} {N}x{K}"
    return case("qgemm_prefill", name, m, bits, GROUP, grouped_peers(m, bits))


def unrounded(m: int, dtype: str) -> Case:
    """Rows that stay what they are, beside a dense product of their type."""
    dense = without_threads(torch_lowbit.dense, m, N, K, dtype, cycle=False)
    note = (
        f"g{GROUP}, symmetric; {dtype} rows as they are, cut exactly into bytes; limit: VNNI peak"
    )
    return Case(
        axis="qgemm_prefill",
        name=f"w4 M={m} {N}x{K} {dtype}",
        ours=partial(exact, m, dtype == "bfloat16"),
        peers={f"torch.mm {dtype}, weight as {dtype}": dense},
        limit=partial(limit, 4 * m),
        note=f"{note} for four products each",
        also={"the best int8 peak of this CPU": partial(tile_limit, 4 * m)},
        flops=2.0 * m * N * K,
        moved=weight_bytes(N, K, 4) + (2.0 if dtype == "bfloat16" else 4.0) * m * (N + K),
    )


def w8a8(m: int) -> Case:
    dynamic = torch_lowbit.dynamic_int8
    peers: dict[str, Factory] = {
        "torch oneDNN dynamic": without_threads(dynamic, m, N, K),
        "torch fbgemm dynamic": without_threads(dynamic, m, N, K, engine="fbgemm"),
        "OpenVINO w8, rows as a whole": partial(openvino, m, 8, K, K, "f32"),
        "ORT DynamicQuantizeLinear + MatMulInteger": partial(onnx_int8, m),
    }
    return case("qgemm_w8a8", f"M={m} {N}x{K}", m, 8, K, peers)


CASES = [
    *(prefill(m, bits) for m in ROWS for bits in WIDTHS),
    *(unrounded(m, dtype) for m in ROWS for dtype in ("float32", "bfloat16")),
    *(w8a8(m) for m in ROWS),
]
