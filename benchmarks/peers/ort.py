"""ONNX Runtime: MatMulNBits (weights of 2, 4 or 8 bits), and dynamic int8 products.

A ring of R weights is one model with R nodes, run as a whole: the time of a node is a run divided
by R, without R entries into the session. Weights are distinct, since the runtime merges equal ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.case import Scaled
from benchmarks.operands import ring_length

__all__ = ["dynamic_int8", "matmul_nbits", "session"]


def session(
    nodes: list[Any], x: np.ndarray, outputs: list[str], weights: dict[str, Any], threads: int
) -> Scaled:
    """Return a run of a model over x [M, K]; its time counts once per node output."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    values = helper.make_tensor_value_info
    initial = [_placeholder(name, array) for name, array in weights.items()]
    graph = helper.make_graph(
        nodes,
        "peer",
        [values("x", TensorProto.FLOAT, list(x.shape))],
        [values(name, TensorProto.FLOAT, None) for name in outputs],
        initial,
    )
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    kept = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}
    options.add_external_initializers(list(kept), list(kept.values()))
    run = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    bound = run.io_binding()
    bound.bind_cpu_input("x", x)
    for name in outputs:
        bound.bind_output(name)
    return Scaled(lambda: run.run_with_iobinding(bound), 1 / len(outputs))


def _placeholder(name: str, array: np.ndarray) -> Any:
    """Return an initialiser without its data, which is handed to the session instead."""
    from onnx import TensorProto, helper

    found = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    found.dims.extend(array.shape)
    found.data_location = TensorProto.EXTERNAL
    found.external_data.add(key="location", value=f"{name}.bin")
    return found


def matmul_nbits(
    m: int,
    n: int,
    k: int,
    bits: int,
    group: int,
    threads: int,
    *,
    zero_point: bool = False,
    ring: bool = True,
) -> Scaled:
    """MatMulNBits: float32 x [m, k], weight [n, k] in groups, int8 inside (accuracy level 4).

    Args:
        m: rows of x.
        n: outputs.
        k: inputs.
        bits: 2, 4 or 8.
        group: inputs that share a scale.
        threads: of the session.
        zero_point: asymmetric.
        ring: cycle through 256 MiB of distinct weights; False for one weight.
    """
    from onnx import helper

    size, groups = n * k * bits // 8, k // group
    count = ring_length(size) if ring else 1
    rng = np.random.default_rng(0)
    nodes, weights, outputs = [], {}, []
    for r in range(count):
        weights[f"w{r}"] = np.frombuffer(rng.bytes(size), np.uint8).reshape(n, groups, -1)
        weights[f"s{r}"] = (0.01 + 0.01 * rng.random(n * groups, np.float32)).astype(np.float32)
        inputs = ["x", f"w{r}", f"s{r}"]
        if zero_point:
            packed = -(-groups * bits // 8)
            weights[f"z{r}"] = np.frombuffer(rng.bytes(n * packed), np.uint8).reshape(n, packed)
            inputs.append(f"z{r}")
        outputs.append(f"y{r}")
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                inputs,
                [f"y{r}"],
                domain="com.microsoft",
                K=k,
                N=n,
                bits=bits,
                block_size=group,
                accuracy_level=4,
            )
        )
    x = rng.standard_normal((m, k), dtype=np.float32)
    return session(nodes, x, outputs, weights, threads)


def dynamic_int8(m: int, n: int, k: int, threads: int, *, ring: bool = False) -> Scaled:
    """DynamicQuantizeLinear and MatMulInteger, rescaled: W8A8 with a scale for the whole of x."""
    from onnx import helper

    count = ring_length(n * k) if ring else 1
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "sx", "zx"])]
    weights, outputs = {}, []
    for r in range(count):
        weights[f"w{r}"] = rng.integers(-127, 128, (k, n), dtype=np.int8)
        weights[f"s{r}"] = (0.01 + 0.01 * rng.random(n, np.float32)).astype(np.float32)
        nodes += [
            helper.make_node("MatMulInteger", ["q", f"w{r}", "zx"], [f"i{r}"]),
            helper.make_node("Cast", [f"i{r}"], [f"f{r}"], to=1),
            helper.make_node("Mul", ["sx", f"s{r}"], [f"t{r}"]),
            helper.make_node("Mul", [f"f{r}", f"t{r}"], [f"y{r}"]),
        ]
        outputs.append(f"y{r}")
    return session(nodes, rng.standard_normal((m, k), dtype=np.float32), outputs, weights, threads)
