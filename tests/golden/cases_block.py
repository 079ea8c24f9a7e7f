"""Golden cases on one decoder layer: scale search, AWQ's search and clip, SmoothQuant."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import upstream
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

__all__ = ["CONFIGS", "GROUPS", "awq_cases", "grids", "make_block", "searches", "smooth_cases"]

HIDDEN, INNER, HEADS, BATCH, TOKENS, GROUP = 64, 128, 4, 2, 20, 32
GROUPS = ("qkv", "o", "gate_up", "down")
_FEED = {
    "self_attn.q_proj": "qkv",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate_up",
    "mlp.down_proj": "down",
}
_SHAPES = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (HIDDEN, HIDDEN),
    "v_proj": (HIDDEN, HIDDEN),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (INNER, HIDDEN),
    "up_proj": (INNER, HIDDEN),
    "down_proj": (HIDDEN, INNER),
}
# (name, w_bit, a_bit or None, loss, weighting)
CONFIGS: tuple[tuple[str, int, int | None, str, str], ...] = (
    *(
        (f"w{w}{f'a{a}' if a else ''}/{loss}/{weighting}", w, a, loss, weighting)
        for w, a in ((4, None), (3, None), (4, 8))
        for loss in ("mae", "mse")
        for weighting in ("plain", "reweight")
    ),
    ("w4/mse/answer", 4, None, "mse", "answer"),
    ("w4/mae/answer", 4, None, "mae", "answer"),
)
_RATIO = {"attn": 0.375, "mlp": 0.15625}
Arrays = dict[str, np.ndarray]


def half(x: np.ndarray) -> np.ndarray:
    """Round to float16: half the bytes in the repository, and float32 holds it exactly."""
    return x.astype(np.float16)


def _inputs(rng: np.random.Generator, cols: int, vision: np.ndarray) -> np.ndarray:
    """Return activations with a few strong channels and stronger vision tokens."""
    channel = np.exp(rng.standard_normal(cols) * 0.5)
    channel[rng.choice(cols, 3, replace=False)] *= 8
    x = rng.standard_normal((BATCH, TOKENS, cols)) * channel
    return half(np.where(vision[..., None], 2 * x, x))


def make_block(rng: np.random.Generator) -> Arrays:
    """Return weights, group inputs, masks and positions of the layer.

    The second sample ends in four pad tokens. The variant with two key/value heads uses the
    first 32 rows of ``k_proj`` and ``v_proj``.
    """
    vision, answer = np.zeros((2, BATCH, TOKENS), dtype=bool)
    vision[0, 2:11], vision[1, 1:8] = True, True
    answer[0, 14:20], answer[1, 11:16] = True, True
    keep = np.tril(np.ones((TOKENS, TOKENS), dtype=bool))[None, None].repeat(BATCH, 0)
    keep[1, :, :, 16:] = False
    arrays: Arrays = {"vision_mask": vision, "answer_mask": answer, "attention_keep": keep}
    for name, shape in _SHAPES.items():
        weight = rng.standard_t(5, shape) / np.sqrt(shape[1])
        arrays[f"weight/{name}"] = half(weight)
    for name in GROUPS:
        arrays[f"x/{name}"] = _inputs(rng, INNER if name == "down" else HIDDEN, vision)
    rotary = LlamaRotaryEmbedding(_config(HEADS))
    cos, sin = rotary(torch.zeros(1), torch.arange(TOKENS)[None])
    arrays["cos"], arrays["sin"] = cos.numpy(), sin.numpy()
    return arrays | {f"ratio/{k}": np.float64(v) for k, v in _RATIO.items()}


def _config(kv_heads: int) -> LlamaConfig:
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        vocab_size=8,
        max_position_embeddings=64,
    )
    config._attn_implementation = "sdpa"
    return config


def build(block: Arrays, kv_heads: int) -> LlamaDecoderLayer:
    """Return the transformers layer that holds the stored weights."""
    layer = LlamaDecoderLayer(_config(kv_heads), 0).eval()
    for name in _SHAPES:
        owner = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
        weight = torch.from_numpy(block[f"weight/{name}"].astype(np.float32))
        linear = getattr(owner, name)
        linear.weight.data = weight[: linear.out_features].clone()
    return layer


def _inputs_of(block: Arrays) -> dict[str, torch.Tensor]:
    return {
        linear: torch.from_numpy(block[f"x/{group}"].astype(np.float32))
        for linear, group in _FEED.items()
    }


def _kwargs(block: Arrays) -> dict[str, Any]:
    cos, sin = torch.from_numpy(block["cos"]), torch.from_numpy(block["sin"])
    keep = torch.from_numpy(block["attention_keep"])
    return {"attention_mask": keep, "position_embeddings": (cos, sin)}


def run_search(block: Arrays, kv_heads: int, config: tuple[Any, ...]) -> list[upstream.Recording]:
    """Run one published search on a fresh layer; return a recording per group."""
    from qmllm.methods.mbq.quantize.auto_scale import auto_scale_block
    from qmllm.methods.mbq.quantize.auto_scale_wa import auto_scale_block_wa

    _, w_bit, a_bit, loss, weighting = config
    answer, vision = torch.from_numpy(block["answer_mask"]), torch.from_numpy(block["vision_mask"])
    ratio = _RATIO if weighting == "reweight" else {"attn": None, "mlp": None}
    options: dict[str, Any] = {
        "w_bit": w_bit,
        "q_config": {"zero_point": True, "q_group_size": GROUP},
        "input_feat": _inputs_of(block),
        "ans_mask": None if weighting == "plain" else answer,
        "vis_mask": vision if weighting == "reweight" else None,
        "reweight_ratio_dict": ratio,
        "loss_mode": loss,
    }
    search = auto_scale_block
    if a_bit is not None:
        search, options["a_bit"] = auto_scale_block_wa, a_bit
    with upstream.record_search() as found:
        scales = search(build(block, kv_heads), _kwargs(block), **options)
    for recording, (_, _, best) in zip(found, scales, strict=True):
        assert torch.equal(recording.best, best)
        assert len(recording.losses) == 20
    return found


def groups_of(kv_heads: int) -> tuple[str, ...]:
    """Return the groups that are searched: ``o`` is skipped unless v and o have one shape."""
    return GROUPS if kv_heads == HEADS else tuple(g for g in GROUPS if g != "o")


def grids(block: Arrays) -> Arrays:
    """Return the 20 candidate scale vectors of every group; they do not depend on the config."""
    found = run_search(block, HEADS, CONFIGS[0])
    return {f"grid/{g}": torch.stack(r.grid).numpy() for g, r in zip(GROUPS, found, strict=True)}


def _pack(found: list[upstream.Recording]) -> Arrays:
    losses = np.array([r.losses for r in found], dtype=np.float32)
    return {"losses": losses, "best": np.array([round(r.ratio * 20) for r in found])}


def searches(block: Arrays) -> Arrays:
    """Return losses [groups, 20] and indices kept [groups], per variant and configuration."""
    reference = grids(block)
    arrays: Arrays = {}
    for variant, kv_heads in (("mha", HEADS), ("gqa", HEADS // 2)):
        for config in CONFIGS:
            found = run_search(block, kv_heads, config)
            for group, recording in zip(groups_of(kv_heads), found, strict=True):
                grid = torch.stack(recording.grid).numpy()
                assert np.array_equal(grid, reference[f"grid/{group}"])
                assert np.array_equal(grid[round(recording.ratio * 20)], recording.best.numpy())
            parts = _pack(found).items()
            arrays |= {f"{variant}/{config[0]}/{key}": value for key, value in parts}
    return arrays


def awq_cases(block: Arrays) -> Arrays:
    """Return llm-awq's search (mse over all tokens) and clip search (16 sampled tokens)."""
    from awq.quantize.auto_clip import auto_clip_layer
    from awq.quantize.auto_scale import auto_scale_block

    arrays: Arrays = {}
    q_config = {"zero_point": True, "q_group_size": GROUP}
    for bits in (3, 4):
        with upstream.record_search() as found:
            auto_scale_block(build(block, HEADS), _kwargs(block), bits, q_config, _inputs_of(block))
        arrays |= {f"w{bits}/{key}": value for key, value in _pack(found).items()}
        for linear, group in (("o_proj", "o"), ("down_proj", "down")):
            weight = torch.from_numpy(block[f"weight/{linear}"].astype(np.float32))
            x = torch.from_numpy(block[f"x/{group}"].astype(np.float32))
            with upstream.record_locals("auto_clip_layer", "min_errs") as seen:
                best = auto_clip_layer(weight, x, bits, q_config, n_sample_token=16)
            arrays[f"clip/w{bits}/{linear}/max"] = best[..., 0].numpy()
            arrays[f"clip/w{bits}/{linear}/error"] = seen[-1]["min_errs"][:, 0, :, 0].numpy()
    return arrays


def smooth_cases(rng: np.random.Generator, block: Arrays) -> Arrays:
    """Return the smoothing vector of norm -> (gate, up), with dead channels on either side.

    The weights are those of ``block`` with the columns ``dead_weight`` set to zero.
    """
    from qmllm.methods.smoothquant.quantize.smooth import smooth_ln_fcs_llama_like as smooth

    act = np.abs(rng.standard_normal(HIDDEN)).astype(np.float32) * 6
    act[[5, 9]] = 0.0
    weights = {n: block[f"weight/{n}"].astype(np.float32) for n in ("gate_proj", "up_proj")}
    for weight in weights.values():
        weight[:, [7, 9]] = 0.0
    arrays: Arrays = {"act_max": act, "dead_weight": np.array([7, 9])}
    for alpha in (0.0, 0.5, 0.8, 1.0):
        norm = nn.LayerNorm(HIDDEN, bias=False)
        linears = [nn.Linear(HIDDEN, INNER, bias=False) for _ in weights]
        for linear, weight in zip(linears, weights.values(), strict=True):
            linear.weight.data = torch.from_numpy(weight.copy())
        with upstream.record_locals("smooth_ln_fcs_llama_like", "scales") as seen:
            smooth(norm, linears, torch.from_numpy(act), alpha)
        arrays[f"a{alpha}/scale"] = seen[-1]["scales"].numpy()
        arrays[f"a{alpha}/norm"] = norm.weight.detach().numpy()
    return arrays
