"""OpenVINO: weights of 4 or 8 bits in groups, with or without dynamic quantisation of x.

A ring of R weights is one model with R products, run as a whole; every product has an input of its
own, since the compiler may join products that share one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.case import Scaled
from benchmarks.operands import ring_length

__all__ = ["linear"]


def _weight(
    n: int, k: int, bits: int, group: int, rng: np.random.Generator, kept: list[np.ndarray]
) -> Any:
    """Return random codes times scales in groups, [n, k] as float32, for the compiler to fold.

    Constants only look at their arrays, so `kept` must live until the model is compiled: else the
    next array takes the same place, and all weights of a ring are one.
    """
    import openvino as ov
    from openvino import opset14 as op

    kind = {4: ov.Type.i4, 8: ov.Type.i8}[bits]
    groups = k // group
    shape = [n, groups, group] if groups > 1 else [n, k]
    raw = np.frombuffer(rng.bytes(n * k * bits // 8), np.uint8)
    kept.append(raw)
    tensor = ov.Tensor(raw if bits == 4 else raw.view(np.int8), ov.Shape(shape), kind)
    scale = (0.01 + 0.01 * rng.random([n, groups, 1][: len(shape)], np.float32)).astype(np.float32)
    if groups == 1:
        scale = scale.reshape(n, 1)
    kept.append(scale)
    codes = op.convert(op.constant(tensor), "f32")
    scaled = op.multiply(codes, op.constant(scale))
    return op.reshape(scaled, np.array([n, k]), False) if groups > 1 else scaled


def linear(
    m: int,
    n: int,
    k: int,
    bits: int,
    group: int,
    threads: int,
    *,
    dynamic: int | None = None,
    precision: str = "f32",
    ring: bool = True,
) -> Scaled:
    """Product of float32 x [m, k] with a compressed weight [n, k].

    Args:
        m: rows of x.
        n: outputs.
        k: inputs.
        bits: 4 or 8, signed and symmetric.
        group: inputs that share a scale; `k` for one scale per output.
        threads: of the inference.
        dynamic: quantise x to int8 in groups of so many inputs (a multiple that `group` allows);
            0 switches it off; None leaves the choice to OpenVINO.
        precision: "f32" or "bf16", what the products may be computed in.
        ring: cycle through 256 MiB of distinct weights; False for one weight.
    """
    import openvino as ov
    from openvino import opset14 as op

    count = ring_length(n * k * bits // 8) if ring else 1
    rng = np.random.default_rng(0)
    inputs = [op.parameter([m, k], np.float32, name=f"x{r}") for r in range(count)]
    kept: list[np.ndarray] = []
    products = [op.matmul(x, _weight(n, k, bits, group, rng, kept), False, True) for x in inputs]
    model = ov.Model([op.result(p) for p in products], inputs)
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_HYPER_THREADING": False,
        "ENABLE_CPU_PINNING": False,
    }
    if dynamic is not None:
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = dynamic
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    kept.clear()
    x = rng.standard_normal((m, k), dtype=np.float32)
    for r in range(count):
        request.set_input_tensor(r, ov.Tensor(x, shared_memory=True))

    def call(kept: np.ndarray = x) -> object:  # the request does not keep x alive
        return request.infer()

    return Scaled(call, 1 / count)
