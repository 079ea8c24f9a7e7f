"""The oracles of this folder reproduce the numbers of the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.loader import FOLDER, load, load_json
from tests.oracles import llama, mbq

QUANTISERS, ACT = load("quantisers"), load("walinear")
BLOCK, SEARCH, AWQ = load("block"), load("block_search"), load("awq")
REWEIGHT, MODEL, RUNS = load("reweight"), load("model"), load("model_search")
SMOOTH = load("smooth")
# name -> (scheme, loss, reweight, distort)
RUN_OPTIONS = {
    "w4_mae_reweight": (mbq.Scheme(4, 32), "mae", True, False),
    "w3_mse_reweight": (mbq.Scheme(3, 32), "mse", True, False),
    "w4_mae": (mbq.Scheme(4, 32), "mae", False, False),
    "w4a8_mae_reweight": (mbq.Scheme(4, act_bits=8), "mae", True, False),
    "w4_mae_reweight_distort": (mbq.Scheme(4, 32), "mae", True, True),
    "w4a8_mse_reweight_distort": (mbq.Scheme(4, act_bits=8), "mse", True, True),
}


def tensor(x: np.ndarray) -> Tensor:
    """Return float16 and float32 arrays as float32, others as they are."""
    return torch.from_numpy(x.astype(np.float32) if x.dtype.kind == "f" else x)


def same(got: Tensor, want: np.ndarray) -> None:
    """Demand equal values; +0 and -0 are one value."""
    np.testing.assert_array_equal(got.numpy(), want)


def golden_input(name: str) -> np.ndarray:
    if name.startswith("ties"):
        return QUANTISERS["/".join(name.split("/")[:3]) + "/x"]
    return QUANTISERS["x"]


@pytest.mark.parametrize("name", [k[:-4] for k in QUANTISERS if "asym" in k and k.endswith("out")])
def test_asymmetric_is_bit_exact(name: str) -> None:
    bits, group = name.split("/")[-2:]
    got = mbq.asymmetric(tensor(golden_input(name)), int(bits[1:]), int(group[1:]))
    same(got.out, QUANTISERS[f"{name}/out"])
    same(got.scale, QUANTISERS[f"{name}/scale"])
    same(got.zero, QUANTISERS[f"{name}/zero"])


@pytest.mark.parametrize(
    "name", [k[:-4] for k in QUANTISERS if "sym/b" in k and "asym" not in k and k.endswith("out")]
)
def test_symmetric_is_bit_exact(name: str) -> None:
    got = mbq.symmetric(tensor(golden_input(name)), int(name[-1]))
    same(got.out, QUANTISERS[f"{name}/out"])
    same(got.scale, QUANTISERS[f"{name}/scale"])


def test_symmetric_per_tensor_is_bit_exact() -> None:
    got = mbq.symmetric(tensor(QUANTISERS["x"][:2]), 8, per_tensor=True)
    same(got.out, QUANTISERS["sym_tensor/b8/out"])


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_per_token_is_bit_exact(bits: int) -> None:
    same(mbq.symmetric(tensor(ACT["x"]), bits).out, ACT[f"per_token/b{bits}"])


@pytest.mark.parametrize(("w_bits", "a_bits"), [(4, 8), (8, 8), (4, 4)])
@pytest.mark.parametrize("bias", ["bias", "nobias"])
def test_quantised_linear(w_bits: int, a_bits: int, bias: str) -> None:
    b = tensor(ACT["bias"]) if bias == "bias" else None
    scheme = mbq.Scheme(w_bits, act_bits=a_bits)
    got = mbq.quantised_linear(tensor(ACT["x"]), tensor(ACT["weight"]), b, scheme)
    # Only the order of 64 float32 additions may differ.
    size = np.abs(ACT["x"]).max() * np.abs(ACT["weight"]).max() * 64
    want = ACT[f"w{w_bits}a{a_bits}/{bias}"]
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=64 * 2.0**-24 * size)


def block_search(config: str, kv_heads: int, group: str) -> mbq.Found:
    """Search one group of the stored layer over the stored candidates."""
    bits, loss, weighting = config.split("/")
    kind = "attn" if group in ("qkv", "o") else "mlp"
    answer, vision = tensor(BLOCK["answer_mask"]), tensor(BLOCK["vision_mask"])
    masks = {"plain": (None, None), "answer": (answer, None), "reweight": (answer, vision)}
    ratio = float(BLOCK[f"ratio/{kind}"])
    weight = mbq.token_weights(answer.shape, *masks[weighting], ratio, loss)
    w = {n: tensor(BLOCK[f"weight/{n}"]) for n in llama.LINEARS}
    w |= {n: w[n][: 16 * kv_heads] for n in ("k_proj", "v_proj")}
    layout = llama.Layout(*(tensor(BLOCK[k]) for k in ("cos", "sin", "attention_keep")), 16)
    scheme = mbq.Scheme(int(bits[1]), 32, 8 if bits.endswith("a8") else None)
    part = {n: w[n] for n in llama.GROUPS[group][1]}
    options = {"loss": loss, "grid": tensor(BLOCK[f"grid/{group}"])}
    block = llama.group_block(group, w, layout)
    return mbq.search(block, part, tensor(BLOCK[f"x/{group}"]), scheme, weight, **options)


@pytest.mark.parametrize("name", [k[:-7] for k in SEARCH if k.endswith("losses")])
def test_block_search(name: str) -> None:
    variant, config = name.split("/", 1)
    groups = [g for g in llama.GROUPS if variant == "mha" or g != "o"]
    for i, group in enumerate(groups):
        got = block_search(config, 4 if variant == "mha" else 2, group)
        np.testing.assert_allclose(got.losses.numpy(), SEARCH[f"{name}/losses"][i], rtol=1e-6)
        assert got.best == SEARCH[f"{name}/best"][i]


@pytest.mark.parametrize("group", llama.GROUPS)
def test_scale_grid(group: str) -> None:
    # A power, a division and a square root: a few units in the last place between machines.
    got = mbq.scale_grid(tensor(BLOCK[f"x/{group}"]))
    np.testing.assert_allclose(got.numpy(), BLOCK[f"grid/{group}"], rtol=8 * 2.0**-24)


@pytest.mark.parametrize("bits", [3, 4])
def test_awq_search_is_mse_over_all_tokens(bits: int) -> None:
    for i, group in enumerate(llama.GROUPS):
        got = block_search(f"w{bits}/mse/plain", 4, group)
        np.testing.assert_allclose(got.losses.numpy(), AWQ[f"w{bits}/losses"][i], rtol=1e-6)
        assert got.best == AWQ[f"w{bits}/best"][i]


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(("linear", "group"), [("o_proj", "o"), ("down_proj", "down")])
def test_clip_search(bits: int, linear: str, group: str) -> None:
    weight, x = tensor(BLOCK[f"weight/{linear}"]), tensor(BLOCK[f"x/{group}"])
    best, error = mbq.clip_search(weight, x, bits, 32, 16)
    np.testing.assert_allclose(best.numpy(), AWQ[f"clip/w{bits}/{linear}/max"], rtol=2.0**-23)
    # Errors are differences of sums of 32 products.
    want = AWQ[f"clip/w{bits}/{linear}/error"]
    np.testing.assert_allclose(error.numpy(), want, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_smooth_scale(alpha: float) -> None:
    weights = [tensor(BLOCK[f"weight/{n}"]) for n in ("gate_proj", "up_proj")]
    for w in weights:
        w[:, SMOOTH["dead_weight"]] = 0
    got = mbq.smooth_scale(tensor(SMOOTH["act_max"]), weights, alpha)
    np.testing.assert_allclose(got.numpy(), SMOOTH[f"a{alpha}/scale"], rtol=8 * 2.0**-24)
    norm, _ = mbq.fuse_norm(torch.ones(64), weights, got)
    np.testing.assert_allclose(norm.numpy(), SMOOTH[f"a{alpha}/norm"], rtol=16 * 2.0**-24)


@pytest.mark.parametrize("layers", [3, 4])
@pytest.mark.parametrize(("kind", "linear"), [("attn", "o_proj"), ("mlp", "down_proj")])
def test_modality_ratios(layers: int, kind: str, linear: str) -> None:
    at = f"l{layers}"
    masks = (tensor(REWEIGHT[f"{at}/{m}_mask"]) for m in ("answer", "vision"))
    mean, used = mbq.modality_ratios(tensor(REWEIGHT[f"{at}/grad/{linear}"]), *masks)
    np.testing.assert_allclose(mean.numpy(), REWEIGHT[f"{at}/mean/{kind}"], rtol=1e-6)
    np.testing.assert_allclose(used.numpy(), REWEIGHT[f"{at}/used/{kind}"], rtol=1e-6)


def language_model() -> llama.Model:
    """Return the stored two-layer model with its calibration batch."""
    layers: list[dict[str, Tensor]] = [{}, {}]
    for key, value in MODEL.items():
        if key.startswith("weight/model.layers."):
            index, *_, name, _ = key.removeprefix("weight/model.layers.").split(".")
            layers[int(index)][name] = tensor(value)
    names = ("inputs_embeds", "labels", "attention_mask", "answer_mask", "vision_mask")
    rest = [tensor(MODEL[n]) for n in names]
    heads = (tensor(MODEL["weight/model.norm.weight"]), tensor(MODEL["weight/lm_head.weight"]))
    return llama.Model(layers, *heads, *rest)


def near(got: Tensor, want: np.ndarray) -> None:
    """Demand logits equal up to float32 noise of two layers (values of order 1)."""
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", RUN_OPTIONS)
def test_whole_run(name: str) -> None:
    scheme, loss, reweight, distort = RUN_OPTIONS[name]
    model = language_model()
    with torch.enable_grad():
        result = llama.run(model, scheme, loss, reweight=reweight, distort=distort)
    assert [f.best for f in result.found] == RUNS[f"{name}/best"].tolist()
    losses = torch.stack([f.losses for f in result.found]).numpy()
    # Inputs of a group differ by float32 noise here, and a code on a tie may flip.
    np.testing.assert_allclose(losses, RUNS[f"{name}/losses"], rtol=1e-4)
    scales = torch.cat([f.scale for f in result.found]).detach().numpy()
    np.testing.assert_allclose(scales, RUNS[f"{name}/scales"], rtol=1e-5)
    if reweight:
        for kind, linear in (("attn", "o_proj"), ("mlp", "down_proj")):
            floor = RUNS[f"{name}/{kind}_median"]
            want = np.maximum(RUNS[f"{name}/{kind}_list"][::-1], floor)
            np.testing.assert_allclose(result.ratios[linear], want, rtol=1e-5)
    model.layers = [llama.quantise(w, scheme) for w in model.layers]
    near(llama.logits(model, scheme).detach(), RUNS[f"{name}/logits"])


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("float", None),
        ("rtn_w4", mbq.Scheme(4, 32)),
        ("rtn_w4a8", mbq.Scheme(4, act_bits=8)),
    ],
)
def test_round_to_nearest(name: str, scheme: mbq.Scheme | None) -> None:
    model = language_model()
    if scheme is not None:
        model.layers = [llama.quantise(w, scheme) for w in model.layers]
    near(llama.logits(model, scheme), RUNS[f"{name}/logits"])


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_smoothquant(alpha: float) -> None:
    model, scheme = language_model(), mbq.Scheme(8, act_bits=8)
    maxima = {
        k.removeprefix("act_max/model.layers."): tensor(v)
        for k, v in RUNS.items()
        if k.startswith("act_max")
    }
    for i, w in enumerate(model.layers):
        scales = {}
        for group, name in (("qkv", "self_attn.q_proj"), ("gate_up", "mlp.gate_proj")):
            weights = [w[n] for n in llama.GROUPS[group][1]]
            scales[group] = mbq.smooth_scale(maxima[f"{i}.{name}"], weights, alpha)
        model.layers[i] = llama.quantise(llama.fuse(w, scales), scheme)
    near(llama.logits(model, scheme), RUNS[f"smoothquant_w8a8_a{alpha}/logits"])


def test_smoothquant_maxima_leave_pads_out() -> None:
    model = language_model()
    x, kept = model.x, model.attention_mask.bool()
    for i, w in enumerate(model.layers):
        x, feed, _ = llama.layer(x, w, model.layout())
        for group, (_, linears) in llama.GROUPS.items():
            owner = "self_attn" if group in ("qkv", "o") else "mlp"
            for name in linears:
                want = RUNS[f"act_max/model.layers.{i}.{owner}.{name}"]
                got = mbq.act_max(feed[group][kept])
                np.testing.assert_allclose(got.numpy(), want, rtol=1e-5)


def test_scale_cache_has_the_published_layout() -> None:
    layout = load_json("provenance")["scale_cache"]
    cache = torch.load(FOLDER / "mbq_scales_tiny.pt", weights_only=True)
    assert list(cache) == layout["keys"] == ["scale"]
    entries = [[p, list(n), list(s.shape), str(s.dtype)] for p, n, s in cache["scale"]]
    assert entries == layout["entries"]
    scales = torch.cat([s for _, _, s in cache["scale"]])
    same(scales, RUNS["w4_mae_reweight/scales"])
