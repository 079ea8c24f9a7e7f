"""Golden cases on a two-layer language model: gradient ratios, full runs, the scale cache."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import upstream
from transformers import LlamaConfig, LlamaForCausalLM

__all__ = ["CACHE", "RUNS", "cache_layout", "make_model", "reweight_cases", "searches"]

HIDDEN, INNER, HEADS, LAYERS, VOCAB, BATCH, TOKENS, GROUP = 32, 64, 2, 2, 17, 3, 18, 32
CACHE = "mbq_scales_tiny.pt"
# (name, w_bit, a_bit or None, loss, reweight, distort)
RUNS: tuple[tuple[str, int, int | None, str, bool, bool], ...] = (
    ("w4_mae_reweight", 4, None, "mae", True, False),
    ("w3_mse_reweight", 3, None, "mse", True, False),
    ("w4_mae", 4, None, "mae", False, False),
    ("w4a8_mae_reweight", 4, 8, "mae", True, False),
    ("w4_mae_reweight_distort", 4, None, "mae", True, True),
    ("w4a8_mse_reweight_distort", 4, 8, "mse", True, True),
)
Arrays = dict[str, np.ndarray]


def _config(layers: int = LAYERS, hidden: int = HIDDEN, inner: int = INNER) -> LlamaConfig:
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        num_hidden_layers=layers,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        use_cache=False,
    )
    config._attn_implementation = "sdpa"
    return config


def make_model(rng: np.random.Generator) -> Arrays:
    """Return weights (float16), embeddings, labels and masks of the calibration batch."""
    arrays: Arrays = {}
    for name, value in LlamaForCausalLM(_config()).state_dict().items():
        if name == "model.embed_tokens.weight":
            continue
        shape = tuple(value.shape)
        one = len(shape) == 1
        drawn = 1 + rng.random(shape) if one else rng.standard_t(5, shape) / np.sqrt(shape[1])
        arrays[f"weight/{name}"] = drawn.astype(np.float16)
    embeds = rng.standard_normal((BATCH, TOKENS, HIDDEN)) * np.exp(rng.standard_normal(HIDDEN))
    vision, answer = np.zeros((2, BATCH, TOKENS), dtype=bool)
    keep = np.ones((BATCH, TOKENS), dtype=np.int64)
    for i, (v0, v1, a0, a1, end) in enumerate(
        ((2, 9, 12, 18, 18), (1, 7, 10, 14, 14), (3, 12, 15, 17, 17))
    ):
        vision[i, v0:v1], answer[i, a0:a1], keep[i, end:] = True, True, 0
    labels = np.where(answer, rng.integers(0, VOCAB, (BATCH, TOKENS)), -100)
    arrays |= {"inputs_embeds": embeds.astype(np.float16), "labels": labels}
    return arrays | {"attention_mask": keep, "vision_mask": vision, "answer_mask": answer}


def build(model: Arrays) -> upstream.Wrapper:
    """Return a fresh wrapped transformers model with the stored weights."""
    language = LlamaForCausalLM(_config()).eval()
    state = language.state_dict()
    for key, value in model.items():
        if key.startswith("weight/"):
            state[key.removeprefix("weight/")] = torch.from_numpy(value.astype(np.float32))
    language.load_state_dict(state)
    return upstream.Wrapper(language)


def prompts(model: Arrays) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return what the published calibration code calls prompt inputs and prompt kwargs."""
    embeds = torch.from_numpy(model["inputs_embeds"].astype(np.float32))
    names = {"vision_mask": "vision_mask", "caption_mask": "answer_mask"}
    names |= {"labels": "labels", "attention_mask": "attention_mask"}
    return {"inputs_embeds": embeds}, {k: torch.from_numpy(model[v]) for k, v in names.items()}


def logits(wrapper: upstream.Wrapper, model: Arrays) -> np.ndarray:
    """Return the logits [B, T, vocab] of the calibration batch."""
    inputs, kwargs = prompts(model)
    with torch.no_grad():
        out = wrapper(**inputs, attention_mask=kwargs["attention_mask"])
    return out.logits.numpy()


def run(model: Arrays, config: tuple[Any, ...], path: Path) -> Arrays:
    """Search, save, then load into a fresh model and fake-quantise it, all by the entry point."""
    from qmllm.methods.mbq.entry import mbq_entry

    name, w_bit, a_bit, loss, reweight, distort = config
    options: dict[str, Any] = {"scale_path": str(path), "q_group_size": GROUP, "w_bit": w_bit}
    options |= {"wa_quant": a_bit is not None, "a_bit": a_bit or 16, "loss_mode": loss}
    options |= {"reweight": reweight, "distort": distort}
    watched = ("attn_list", "mlp_list", "attn_median", "mlp_median", "grad_avg_dict")
    arrays: Arrays = {}
    with upstream.record_locals("run_mbq", *watched) as seen, upstream.record_search() as found:
        mbq_entry(build(model), *prompts(model), True, False, **options)
    entries = torch.load(path, weights_only=True)["scale"]
    for (_, _, scale), recording in zip(entries, found, strict=True):
        assert torch.equal(scale, recording.best)
    arrays[f"{name}/scales"] = torch.cat([scale for _, _, scale in entries]).numpy()
    arrays[f"{name}/losses"] = np.array([r.losses for r in found], dtype=np.float32)
    arrays[f"{name}/best"] = np.array([round(r.ratio * 20) for r in found])
    for key in watched[:4] if reweight else ():
        arrays[f"{name}/{key}"] = np.array(seen[-1][key], dtype=np.float64)
    quantised = build(model)
    mbq_entry(quantised, *prompts(model), False, True, **options)
    return arrays | {f"{name}/logits": logits(quantised, model)}


def rtn_and_smooth(model: Arrays) -> Arrays:
    """Return logits after RTN and SmoothQuant, and SmoothQuant's activation maxima."""
    from qmllm.methods.rtn.entry import rtn_entry
    from qmllm.methods.smoothquant.entry import smoothquant_entry

    arrays: Arrays = {"float/logits": logits(build(model), model)}
    for name, a_bit in (("rtn_w4", 16), ("rtn_w4a8", 8)):
        options = {"wa_quant": a_bit < 16, "q_group_size": GROUP, "w_bit": 4, "a_bit": a_bit}
        wrapper = build(model)
        rtn_entry(wrapper, pseudo_quant=True, **options)
        arrays[f"{name}/logits"] = logits(wrapper, model)
    for alpha in (0.5, 0.8):
        wrapper = build(model)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "act.pt")
            smoothquant_entry(wrapper, *prompts(model), True, True, path, 8, 8, alpha)
            maxima = torch.load(path, weights_only=True)
        arrays |= {f"act_max/{key}": value.numpy() for key, value in maxima.items()}
        arrays[f"smoothquant_w8a8_a{alpha}/logits"] = logits(wrapper, model)
    return arrays


def searches(model: Arrays, out: Path) -> Arrays:
    """Return every run; keep the scale file of the first one as written by the entry point."""
    arrays = rtn_and_smooth(model)
    for config in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scales.pt"
            arrays |= run(model, config, path)
            if config is RUNS[0]:
                (out / CACHE).write_bytes(path.read_bytes())
    return arrays


def cache_layout(out: Path) -> dict[str, Any]:
    """Describe the scale cache: keys, then [previous op, linears, shape, dtype] per entry."""
    cache = torch.load(out / CACHE, weights_only=True)
    entries = [[p, list(n), list(s.shape), str(s.dtype)] for p, n, s in cache["scale"]]
    return {"keys": list(cache), "entries": entries}


def reweight_cases(rng: np.random.Generator) -> Arrays:
    """Return ratios of hand-made gradients, through the published hook, median and maximum.

    ``run_mbq`` runs on a small model, but its gradient cache is fed the stored gradients
    [layer, sample, token, channel] instead of those of the backward pass.
    """
    arrays: Arrays = {}
    for layers in (3, 4):
        vision, answer = np.zeros((2, 3, 6), dtype=bool)
        for i in range(3):
            vision[i, 0 : i + 2], answer[i, 4 : 5 + i % 2] = True, True
        arrays |= {f"l{layers}/vision_mask": vision, f"l{layers}/answer_mask": answer}
        grads = {}
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            g = rng.standard_t(4, (layers, 3, 6, 5)) * 10.0 ** rng.integers(
                -6, 0, (layers, 1, 1, 1)
            )
            g[-1][vision] = 0.0
            grads[name] = g.astype(np.float32)
            arrays[f"l{layers}/grad/{name.split('.')[1]}"] = grads[name]
        arrays |= {f"l{layers}/{k}": v for k, v in _ratios(layers, vision, answer, grads).items()}
    return arrays


def _ratios(layers: int, vision: np.ndarray, answer: np.ndarray, grads: Arrays) -> Arrays:
    from qmllm.methods.mbq.quantize import pre_quant

    class Injected(pre_quant.GradCacheHook):
        """The published cache, fed by hand (last layer first, as a backward pass would)."""

        def get_avg_grad_dict(self) -> dict[str, dict[str, float]]:
            self.grad_dict, self.steps = {}, {}
            for name, values in grads.items():
                for layer in reversed(range(layers)):
                    for sample in values[layer]:
                        out = (torch.from_numpy(sample)[None],)
                        self.cache_grad_hook(None, None, out, f"layers.{layer}.{name}")
            return super().get_avg_grad_dict()

    used: list[dict[str, float]] = []

    def note(*_: Any, reweight_ratio_dict: dict[str, float], **__: Any) -> list[Any]:
        used.append(dict(reweight_ratio_dict))
        return []

    model = upstream.Wrapper(LlamaForCausalLM(_config(layers, 8, 8)).eval())
    batch, tokens = vision.shape
    masks = {"vision_mask": torch.from_numpy(vision), "caption_mask": torch.from_numpy(answer)}
    kwargs = masks | {"labels": torch.zeros(batch, tokens, dtype=torch.int64)}
    patches = mock.patch.multiple(pre_quant, GradCacheHook=Injected, auto_scale_block=note)
    with patches, upstream.record_locals("run_mbq", "grad_avg_dict") as seen:
        inputs = {"inputs_embeds": torch.randn(batch, tokens, 8)}
        pre_quant.run_mbq(model, inputs, kwargs, 4, 16, {}, reweight=True)
    found = seen[-1]["grad_avg_dict"]
    arrays = {f"used/{k}": np.array([u[k] for u in used]) for k in ("attn", "mlp")}
    for kind, name in (("attn", "self_attn.o_proj"), ("mlp", "mlp.down_proj")):
        pairs = [found[f"layers.{i}.{name}"] for i in range(layers)]
        mean = [[p["vis_avg_grad"], p["cap_avg_grad"]] for p in pairs]
        arrays[f"mean/{kind}"] = np.array(mean)
    return arrays
