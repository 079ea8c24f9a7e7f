"""llama.cpp through the bindings of llama-cpp-python, and files of random weights for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from benchmarks.request_models import Shape

__all__ = ["Decoder", "write_gguf"]

_BLOCKS = {"Q4_0": (32, 18), "Q4_K": (256, 144), "Q6_K": (256, 210), "Q8_0": (32, 34)}
"""Kind -> weights and bytes of a block."""


def _blocks(kind: str, rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """Return random blocks of a weight [rows, cols] whose values have a deviation of about 0.02."""
    size, width = _BLOCKS[kind]
    data = np.frombuffer(rng.bytes(rows * cols // size * width), np.uint8).reshape(-1, width).copy()
    step = np.float16(0.0043 if kind == "Q4_0" else 0.00027).reshape(1).view(np.uint8)
    if kind in ("Q4_0", "Q8_0"):
        data[:, :2] = step
    elif kind == "Q4_K":  # scale of scales, and of minima, which are up to 63
        data[:, :2] = np.float16(0.00013).reshape(1).view(np.uint8)
        data[:, 2:4] = np.float16(0.001).reshape(1).view(np.uint8)
    else:
        data[:, -2:] = np.float16(1.5e-5).reshape(1).view(np.uint8)
    return data.reshape(rows, -1)


def _kind(mix: str, name: str, layer: int, layers: int) -> str:
    """Return the kind that llama.cpp's quantiser gives a weight."""
    if name == "output":
        return "Q6_K"
    if mix == "Q4_0":
        return "Q4_0"
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return "Q6_K" if more and name in ("attn_v", "ffn_down") else "Q4_K"


def write_gguf(shape: Shape, mix: str, path: Path) -> None:
    """Write a Llama decoder of random weights, quantised as `mix` (Q4_0 or Q4_K_M).

    Args:
        shape: of the decoder.
        mix: which kinds of blocks.
        path: file to make.
    """
    import gguf

    writer, rng = gguf.GGUFWriter(str(path), "llama"), np.random.default_rng(0)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, rows: int, cols: int, kind: str) -> None:
        data = _blocks(kind, rows, cols, rng)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.hidden, np.float32))

    h, kv, inner = shape.hidden, shape.kv, shape.inner
    add("token_embd.weight", shape.vocab, h, "Q4_0" if mix == "Q4_0" else "Q4_K")
    linears = {
        "attn_q": (h, h),
        "attn_k": (kv, h),
        "attn_v": (kv, h),
        "attn_output": (h, h),
        "ffn_gate": (inner, h),
        "ffn_up": (inner, h),
        "ffn_down": (h, inner),
    }
    for layer in range(shape.layers):
        for name, sizes in linears.items():
            add(f"blk.{layer}.{name}.weight", *sizes, _kind(mix, name, layer, shape.layers))
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
    norm("output_norm.weight")
    add("output.weight", shape.vocab, h, _kind(mix, "output", 0, shape.layers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Decoder:
    """A decoder that answers requests greedily.

    Args:
        path: GGUF file.
        threads: of the inference.
        most: tokens of a request and its answer.
    """

    def __init__(self, path: str, threads: int, most: int) -> None:
        import llama_cpp as llama

        self._llama: Any = llama
        self._silence = llama.llama_log_callback(lambda *message: None)
        llama.llama_log_set(self._silence, None)
        llama.llama_backend_init()
        settings = llama.llama_model_default_params()
        self._model = llama.llama_model_load_from_file(path.encode(), settings)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = most + 8, 1024, 1024
        params.n_threads = params.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, params)
        vocab = llama.llama_model_get_vocab(self._model)
        self._vocab = llama.llama_vocab_n_tokens(vocab)

    def _ask(self, ids: list[int]) -> int:
        import ctypes

        llama = self._llama
        tokens = (llama.llama_token * len(ids))(*ids)
        if llama.llama_decode(self._context, llama.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama.cpp cannot decode")
        logits = llama.llama_get_logits_ith(self._context, -1)
        address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(address, (self._vocab,)).argmax())

    def request(self, tokens: int, new: int) -> list[float]:
        """Answer `tokens` random tokens with `new` ones; return the times, the start first."""
        llama = self._llama
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        ids = np.random.default_rng(3).integers(3, self._vocab - 1, tokens).tolist()
        times = [time.perf_counter()]
        made = self._ask(ids)
        times.append(time.perf_counter())
        for _ in range(new - 1):
            made = self._ask([made])
            times.append(time.perf_counter())
        return times
