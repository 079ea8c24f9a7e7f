"""Golden cases on whole models: the published code on a tiny Qwen2-VL and a tiny LLaVA.

Runs in the environment ``host-mbq`` (transformers 4.45.0, the version MBQ pins). Qwen2-VL goes
through MBQ's own wrapper, embedding included; LLaVA is ``LlavaLlamaForCausalLM`` of the original
code through MBQ's ``LLaVA_v15``.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import upstream
from torch import nn

__all__ = ["RUNS", "build", "make_model", "run", "searches"]

HIDDEN, INNER, HEADS, LAYERS, VOCAB, GROUP = 128, 256, 4, 2, 48, 128
KV_HEADS = {"qwen2_vl": 2, "llava": 4}
LENGTHS, TOKENS = (44, 36, 40), 44
IMAGE, VISION = VOCAB - 1, 16
"""Id of an image token in Qwen2-VL; image tokens per sample."""
# (name, w_bit, a_bit or None, loss, reweight, distort)
RUNS: tuple[tuple[str, int, int | None, str, bool, bool], ...] = tuple(
    (f"w{w}{f'a{a}' if a else ''}/{loss}{'/reweight' * r}{'/distort' * d}", w, a, loss, r, d)
    for w, a in ((4, None), (3, None), (4, 8))
    for loss in ("mae", "mse")
    for r in (False, True)
    for d in (False, True)
)
WEIGHTS = ("w3/mae/reweight", "w4/mse", "w4a8/mae/reweight")
"""Runs of which fake-quantised weights of the last block are kept."""
Arrays = dict[str, np.ndarray]


def qwen2_vl() -> nn.Module:
    """Return a tiny Qwen2-VL with random weights."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 1, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2}
    vision |= {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    config = Qwen2VLConfig(
        **_decoder("qwen2_vl"),
        vision_config=vision,
        rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]},
    )
    config.image_token_id = IMAGE
    return Qwen2VLForConditionalGeneration(config)


def llava(folder: Path) -> nn.Module:
    """Return a tiny LLaVA of the original code; its vision tower is written to `folder`."""
    from llava.model import LlavaConfig, LlavaLlamaForCausalLM
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    tower = CLIPVisionConfig(**size, num_hidden_layers=2, image_size=16, patch_size=4)
    CLIPVisionModel(tower).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    config = LlavaConfig(
        **_decoder("llava"),
        mm_vision_tower=str(folder),
        mm_hidden_size=32,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_use_im_start_end=False,
    )
    model = LlavaLlamaForCausalLM(config)
    model.get_vision_tower().load_model()
    return model


def _decoder(family: str) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS[family],
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "use_cache": False,
    }


def make_model(family: str, seed: int) -> Arrays:
    """Return decoder weights (float16), and the calibration batch as MBQ makes it."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        model = _new(family, Path(folder))
    arrays: Arrays = {}
    for name, value in model.state_dict().items():
        if not name.startswith(("model.layers.", "model.norm.", "lm_head.")):
            continue
        shape = tuple(value.shape)
        if name.endswith("bias"):
            drawn = 0.1 * rng.standard_normal(shape)
        elif len(shape) == 1:
            drawn = 1 + rng.random(shape)
        else:
            drawn = rng.standard_t(5, shape) / np.sqrt(shape[1])
        arrays[f"weight/{name}"] = drawn.astype(np.float16)
    inputs, kwargs = (_qwen2_vl_batch if family == "qwen2_vl" else _llava_batch)(model, rng)
    # Channels of different size, and image tokens of another size than text, as in real models.
    gain = torch.from_numpy(np.exp(rng.standard_normal(HIDDEN)))
    embeds = inputs["inputs_embeds"].double()
    vision = kwargs["vision_mask"][..., None]
    embeds = embeds / embeds.std() * gain * torch.where(vision, 2.0, 1.0)
    arrays["inputs_embeds"] = embeds.numpy().astype(np.float16)
    names = {"vision_mask": "vision_mask", "answer_mask": "caption_mask"}
    names |= {"labels": "labels", "attention_mask": "attention_mask"}
    return arrays | {k: kwargs[v].numpy() for k, v in names.items()}


def _new(family: str, folder: Path) -> nn.Module:
    torch.manual_seed(0)
    return (qwen2_vl() if family == "qwen2_vl" else llava(folder)).eval()


def _qwen2_vl_batch(model: nn.Module, rng: np.random.Generator) -> tuple[Any, Any]:
    """Pad on the left and embed with MBQ's own ``generate_input``."""
    ids = torch.zeros(len(LENGTHS), TOKENS, dtype=torch.int64)
    labels, real = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, n in enumerate(LENGTHS):
        row = torch.from_numpy(rng.integers(1, VOCAB - 2, n))
        row[4 : 4 + VISION] = IMAGE
        ids[i, -n:], real[i, -n:] = row, 1
        labels[i, 4 + VISION + 8 + 2 * i - TOKENS - (n - TOKENS) :] = 0
        labels[i] = torch.where(labels[i] == 0, ids[i], labels[i])
    pixels = torch.from_numpy(rng.standard_normal((len(LENGTHS) * 64, 3 * 2 * 16))).float()
    grid = torch.tensor([[1, 8, 8]] * len(LENGTHS))
    samples = {"input_ids": ids, "attention_mask": real, "labels": labels}
    return _wrapped("qwen2_vl", model).generate_input(
        samples | {"pixel_values": pixels, "image_grid_thw": grid}
    )


def _llava_batch(model: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Pad on the right and embed with the original code; MBQ's own needs LLaVA-NeXT."""
    ids = torch.zeros(len(LENGTHS), TOKENS - VISION + 1, dtype=torch.int64)
    labels, real = torch.full_like(ids, -100), torch.zeros_like(ids).bool()
    for i, n in enumerate(LENGTHS):
        text = n - VISION + 1
        ids[i, :text] = torch.from_numpy(rng.integers(1, VOCAB, text))
        ids[i, 4], real[i, :text] = -200, True
        labels[i, 10 + 2 * i : text] = ids[i, 10 + 2 * i : text]
    images = torch.from_numpy(rng.standard_normal((len(LENGTHS), 3, 16, 16))).float()
    made = model.prepare_inputs_labels_for_multimodal(ids, None, real, None, labels, images)
    mask, embeds, told = made[2], made[4], made[5]
    vision = torch.zeros_like(mask)
    vision[:, 4 : 4 + VISION] = True
    return {"inputs_embeds": embeds.detach()}, {
        "labels": told, "attention_mask": mask, "vision_mask": vision, "caption_mask": told != -100,
    }  # fmt: skip


def _wrapped(family: str, model: nn.Module) -> Any:
    """Return what MBQ calls a process model."""
    if family == "qwen2_vl":
        from qmllm.models.qwen2_vl.qwen2_vl import Qwen2_VL

        return Qwen2_VL(model, None, None)
    from qmllm.models.llava_v15.llava_v15 import LLaVA_v15

    return LLaVA_v15(model, None)


@contextlib.contextmanager
def build(family: str, arrays: Arrays) -> Iterator[Any]:
    """Give a fresh wrapped model with the stored weights."""
    with tempfile.TemporaryDirectory() as folder:
        model = _new(family, Path(folder))
    state = model.state_dict()
    for key, value in arrays.items():
        if key.startswith("weight/"):
            state[key.removeprefix("weight/")] = torch.from_numpy(value.astype(np.float32))
    model.load_state_dict(state)
    yield _wrapped(family, model)


def prompts(arrays: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what MBQ calls prompt inputs and prompt kwargs."""
    names = {"vision_mask": "vision_mask", "caption_mask": "answer_mask"}
    names |= {"labels": "labels", "attention_mask": "attention_mask"}
    embeds = torch.from_numpy(arrays["inputs_embeds"].astype(np.float32))
    return {"inputs_embeds": embeds}, {k: torch.from_numpy(arrays[v]) for k, v in names.items()}


def logits(wrapper: Any, arrays: Arrays) -> np.ndarray:
    """Return the logits of every fourth token of the calibration batch."""
    inputs, kwargs = prompts(arrays)
    with torch.no_grad():
        out = wrapper(
            **inputs, **{k: kwargs[k] for k in ("attention_mask", "labels")}, return_dict=True
        )
    return out.logits[:, ::4].float().numpy()


def run(family: str, arrays: Arrays, config: tuple[Any, ...], path: Path) -> Arrays:
    """Search and save, then load into a fresh model and fake-quantise it, by the entry point."""
    from qmllm.methods.mbq.entry import mbq_entry

    name, w_bit, a_bit, loss, reweight, distort = config
    options: dict[str, Any] = {"scale_path": str(path), "q_group_size": GROUP, "w_bit": w_bit}
    options |= {"wa_quant": a_bit is not None, "a_bit": a_bit or 16, "loss_mode": loss}
    options |= {"reweight": reweight, "distort": distort}
    made: Arrays = {}
    with (
        build(family, arrays) as wrapper,
        upstream.record_locals("run_mbq", "layer_kwargs", "grad_avg_dict") as seen,
        upstream.record_search() as found,
    ):
        mbq_entry(wrapper, *prompts(arrays), True, False, **options)
    entries = torch.load(path, weights_only=True)["scale"]
    for (_, _, scale), recording in zip(entries, found, strict=True):
        assert torch.equal(scale, recording.best)
    made["scales"] = torch.cat([scale for _, _, scale in entries]).numpy()
    made["losses"] = np.array([r.losses for r in found], dtype=np.float64)
    made["best"] = np.array([round(r.ratio * 20) for r in found])
    if reweight:
        grads = seen[-1]["grad_avg_dict"]
        for kind, key in (("attn", "self_attn.o_proj"), ("mlp", "mlp.down_proj")):
            pairs = [grads[f"layers.{i}.{key}"] for i in range(LAYERS)]
            made[f"mean/{kind}"] = np.array([[p["vis_avg_grad"], p["cap_avg_grad"]] for p in pairs])
    quantised = loaded(family, arrays, path, options)
    made["logits"] = logits(quantised, arrays)
    if name in WEIGHTS:
        made |= _weights(quantised)
    mask = seen[-1]["layer_kwargs"]["attention_mask"]
    arrays.setdefault("keep", (mask > -1).numpy())
    return {f"{name}/{k}": v for k, v in made.items()}


def loaded(family: str, arrays: Arrays, path: Path, options: dict[str, Any]) -> Any:
    """Return a fresh model with the scales of a file applied and its layers quantised, by MBQ."""
    from qmllm.methods.mbq.entry import mbq_entry

    with build(family, arrays) as wrapper:
        mbq_entry(wrapper, *prompts(arrays), False, True, **options | {"scale_path": str(path)})
        return wrapper


def _weights(wrapper: Any) -> Arrays:
    """Return quantised weights of the last block."""
    layer, names = wrapper.model.model.layers[-1], ("self_attn.q_proj", "mlp.down_proj")
    return {f"weight/{n}": layer.get_submodule(n).weight.detach().numpy().copy() for n in names}


def smoothquant(family: str, arrays: Arrays) -> Arrays:
    """Return SmoothQuant's activation maxima and logits, by its entry point."""
    from qmllm.methods.smoothquant.entry import smoothquant_entry

    made: Arrays = {}
    for alpha in (0.5, 0.8):
        with tempfile.TemporaryDirectory() as folder, build(family, arrays) as wrapper:
            path = Path(folder) / "act.pt"
            smoothquant_entry(wrapper, *prompts(arrays), True, True, str(path), 8, 8, alpha)
            maxima = torch.load(path, weights_only=True)
            made[f"smoothquant_a{alpha}/logits"] = logits(wrapper, arrays)
        made |= {f"act_max/{k}": v.numpy() for k, v in maxima.items() if "layers" in k}
    return made


def awq(family: str, arrays: Arrays) -> Arrays:
    """Return AWQ's searches as meant: the wrapper and the keyword that stop it are put right.

    With all tokens, and with those of answers.
    """
    from qmllm.methods.awq.quantize import auto_scale

    real = auto_scale.pseudo_quantize_tensor
    fixed = mock.patch.object(
        auto_scale,
        "pseudo_quantize_tensor",
        lambda w, n_bit, **q: real(w, n_bits=n_bit, **q),
    )
    made: Arrays = {}
    for bits in (3, 4):
        for kind, answer in (("all", None), ("answer", torch.from_numpy(arrays["answer_mask"]))):
            with build(family, arrays) as wrapper, fixed, upstream.record_search() as found:
                _awq_layers(wrapper, arrays, bits, answer)
            made[f"awq/w{bits}/{kind}/losses"] = np.array([r.losses for r in found])
            made[f"awq/w{bits}/{kind}/best"] = np.array([round(r.ratio * 20) for r in found])
    return made


def _awq_layers(wrapper: Any, arrays: Arrays, bits: int, answer: torch.Tensor | None) -> None:
    """Search the first block with the published ``auto_scale_block`` of AWQ."""
    from qmllm.methods.awq.quantize.auto_scale import auto_scale_block

    calls: list[tuple[Any, Any]] = []
    feats: dict[str, torch.Tensor] = {}
    layer = wrapper.model.model.layers[0]

    def note(name: str) -> Any:
        return lambda _, x: feats.__setitem__(name, x[0])

    hooks = [
        m.register_forward_pre_hook(note(n))
        for n, m in layer.named_modules()
        if isinstance(m, nn.Linear)
    ]
    hooks.append(
        layer.register_forward_pre_hook(lambda _, a, k: calls.append((a, k)), with_kwargs=True)
    )
    logits(wrapper, arrays)
    for hook in hooks:
        hook.remove()
    kwargs = {k: v for k, v in calls[0][1].items() if k not in ("hidden_states", "use_cache")}
    config = {"zero_point": True, "q_group_size": GROUP}
    if family_of(layer) == "Qwen2VLDecoderLayer":
        layer = _as_llama(layer)
    with torch.no_grad():
        auto_scale_block(layer, kwargs, bits, config, feats, answer)


def family_of(layer: nn.Module) -> str:
    """Return the class name by which the published code knows a block."""
    return type(layer).__name__


def _as_llama(layer: nn.Module) -> nn.Module:
    """AWQ lists no Qwen2-VL block; Qwen2's, which it lists, has the same names."""
    layer.__class__ = type("Qwen2DecoderLayer", (type(layer),), {})
    return layer


def searches(family: str, arrays: Arrays, cache: Path) -> Arrays:
    """Return every run; keep the scale file of one of them as the entry point wrote it."""
    with build(family, arrays) as wrapper:
        made: Arrays = {"float/logits": logits(wrapper, arrays)}
    made |= smoothquant(family, arrays) | awq(family, arrays)
    for config in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scales.pt"
            made |= run(family, arrays, config, path)
            if config[0] == WEIGHTS[0]:
                cache.write_bytes(path.read_bytes())
    return made
