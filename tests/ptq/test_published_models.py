"""A tiny Qwen2-VL and a tiny LLaVA against runs of the published code on them (tests/golden).

Bars: the same candidate wherever the two best losses differ by more than 1e-4; losses within 1e-4,
nine in ten of the weight-only ones within 1e-5; scales 1e-6; rounded weights equal but for ties.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmibq.data import Batch
from cmibq.eval.pseudo import pseudo_quantize_
from cmibq.io import ScaleEntry, load_scales, save_scales
from cmibq.models import Adapter, LoadedModel
from cmibq.models.base import LLAMA_ROWS
from cmibq.ptq.journal import BlockFound, Journal
from cmibq.ptq.reweight import Means, add_gradients_
from cmibq.ptq.run import process_, to_entries
from cmibq.ptq.stream import BatchStream, make_stream
from cmibq.ptq.task import Task
from cmibq.recipe import EvalConfig, QuantRecipe
from cmibq.search import TokenWeights
from tests.golden.loader import FOLDER, load
from tests.oracles import mbq

FAMILIES = ("qwen2_vl", "llava")
LOSS, MOST_LOSSES, SCALE, TIES = 1e-4, 1e-5, 1e-6, 1e-4


@dataclass(frozen=True)
class Run:
    """What one recipe found, in the order of the published code's entries."""

    model: LoadedModel
    found: dict[int, BlockFound]
    entries: list[ScaleEntry]


@functools.cache
def stored(family: str) -> dict[str, np.ndarray]:
    return load(f"vlm_{family}")


@functools.cache
def published(family: str) -> dict[str, np.ndarray]:
    return load(f"vlm_{family}_search")


def names(family: str) -> list[str]:
    return [k.removesuffix("/scales") for k in published(family) if k.endswith("/scales")]


def tensor(family: str, name: str) -> Tensor:
    value = stored(family)[name]
    return torch.from_numpy(value.astype(np.float32) if value.dtype.kind == "f" else value)


def hosted(family: str) -> torch.nn.Module:
    import transformers as host

    text = {
        "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 48,
        "num_hidden_layers": 2, "max_position_embeddings": 128, "use_cache": False,
    }  # fmt: skip
    torch.manual_seed(0)
    if family == "llava":
        tower = host.CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_attention_heads=1, num_hidden_layers=1,
            image_size=8, patch_size=4,
        )  # fmt: skip
        return host.LlavaForConditionalGeneration(
            host.LlavaConfig(vision_config=tower, text_config=host.LlamaConfig(**text))
        )
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 128, "num_heads": 1, "mlp_ratio": 1}
    config = host.Qwen2VLConfig(
        text_config=text | {"num_key_value_heads": 2, "rope_parameters": rope},
        vision_config=vision | {"patch_size": 4},
        tie_word_embeddings=False,
    )
    return host.Qwen2VLForConditionalGeneration(config)


def loaded(family: str) -> LoadedModel:
    adapter = Adapter(
        family=family,
        decoders=(),
        decoder_path="model.language_model",
        head_path="lm_head",
        rows=LLAMA_ROWS,
        image_features=lambda model, images: images["pixel_values"],
        gradient_of=(("self_attn.o_proj", ("qkv", "o")), ("mlp.down_proj", ("gate_up", "down"))),
    )
    model = hosted(family).eval()
    state = model.state_dict()
    for key in stored(family):
        if key.startswith("weight/"):
            name = key.removeprefix("weight/").replace("model.", "model.language_model.", 1)
            assert name in state, name
            state[name] = tensor(family, key)
    model.load_state_dict(state)
    return LoadedModel(model, None, adapter, Path())


def source(model: LoadedModel, gradients: bool) -> Iterator[BatchStream]:
    family = model.adapter.family
    mask = tensor(family, "attention_mask").long()
    masks = {n: tensor(family, n) for n in ("vision_mask", "answer_mask", "labels")}
    batch = Batch(
        input_ids=torch.zeros_like(mask),
        attention_mask=mask,
        image_inputs=None,
        images=(),
        image_index=torch.zeros(0, dtype=torch.int64),
        samples=(),
        **masks,
    )
    embeds = tensor(family, "inputs_embeds")
    stream = make_stream(model, embeds, batch, reference=True, gradients=gradients)
    # The masks of the published run: libraries differ in what a pad attends to.
    keep = tensor(family, "keep")
    added = torch.zeros(keep.shape).masked_fill_(~keep, torch.finfo(torch.float32).min)
    for call in stream.calls:
        call["attention_mask"] = added
    yield stream


def fields(name: str) -> dict[str, Any]:
    """Return the recipe of a published run by its name."""
    bits, loss, *more = name.split("/")
    weight, _, act = bits[1:].partition("a")
    return {
        "w_bit": int(weight), "a_bit": int(act or 16), "loss_mode": loss, "method": "mbq",
        "reweight": "reweight" in more, "distort": "distort" in more,
    }  # fmt: skip


@functools.cache
def run(family: str, name: str) -> Run:
    """Search as the published run did; rounds the weights of weight-only recipes in place."""
    return searched(family, **fields(name))


def searched(family: str, **options: Any) -> Run:
    recipe = QuantRecipe(**options, w_group=128, variant="reference", pseudo_quant=True)
    model = loaded(family)
    tables = {i: model.adapter.groups(n, b) for i, n, b in model.adapter.numbered(model.model)}
    journal = Journal(Path("does/not/exist"), "none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "write_block", lambda *_: None)
        patch.setattr(Journal, "write_ratios", lambda *_: None)
        found = process_(recipe, model, lambda g: source(model, g), journal)
    return Run(model, found, to_entries(tables, found))


CASES = [(f, n) for f in FAMILIES for n in names(f)]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_losses_and_choices(family: str, name: str) -> None:
    want = published(family)
    mine = [g for block in run(family, name).found.values() for g in block.values()]
    losses = np.array([g.result.losses for g in mine if g.result.losses])
    best = np.array([round(20 * (g.result.ratio or 0)) for g in mine if g.result.losses])
    # One group decides what the next ones see: where two candidates tie, later ones may differ.
    ordered = np.sort(want[f"{name}/losses"], axis=1)
    clear = ordered[:, 1] > (1 + LOSS) * ordered[:, 0]
    assert np.array_equal(best[clear], want[f"{name}/best"][clear])
    error = np.abs(losses / want[f"{name}/losses"] - 1)
    assert error.max() <= LOSS
    if "a8" not in name:
        assert np.quantile(error, 0.9) <= MOST_LOSSES


@pytest.mark.parametrize(("family", "name"), CASES)
def test_scales(family: str, name: str) -> None:
    got = torch.cat([e.scales for e in run(family, name).entries])
    want = torch.from_numpy(published(family)[f"{name}/scales"])
    torch.testing.assert_close(got, want, rtol=SCALE, atol=0)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_awq_as_it_was_meant(
    family: str, bits: int, tokens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "awq"
    if tokens == "answer":
        answer, method = tensor(family, "answer_mask").flatten(), "mbq"
        only = TokenWeights.modality(answer, None, 0.0, "mse")
        monkeypatch.setattr(Task, "tokens", lambda *_: only)
    got = searched(family, method=method, w_bit=bits, loss_mode="mse").found[0].values()
    want = published(family)
    key = f"awq/w{bits}/{tokens}"
    losses = [g.result.losses for g in got if g.result.losses]
    np.testing.assert_allclose(losses, want[f"{key}/losses"], rtol=MOST_LOSSES)
    best = [round(20 * (g.result.ratio or 0)) for g in got if g.result.losses]
    assert best == want[f"{key}/best"].tolist()


@pytest.mark.parametrize("alpha", [0.5, 0.8])
@pytest.mark.parametrize("family", FAMILIES)
def test_smoothquant(family: str, alpha: float, tmp_path: Path) -> None:
    found = searched(family, method="smoothquant", w_bit=8, a_bit=8, alpha=alpha)
    want, model = published(family), loaded(family).model
    for entry in found.entries:
        maxima = torch.from_numpy(want[f"act_max/{_there(entry.linears[0])}"])
        weights = [model.get_parameter(f"{n}.weight").detach() for n in entry.linears]
        s = mbq.smooth_scale(maxima, weights, alpha)
        torch.testing.assert_close(entry.scales, s, rtol=1e-5, atol=0)
    save_scales(tmp_path / "s.pt", found.entries)
    asked = {"w_bit": 8, "a_bit": 8, "method": "smoothquant"}
    if family == "llava":  # Qwen2-VL: one activation of a thousand is a tie that falls otherwise
        check_logits(family, f"smoothquant_a{alpha}", asked, tmp_path / "s.pt")


def _there(name: str) -> str:
    return name.replace("language_model.", "")


@pytest.mark.parametrize("family", FAMILIES)
def test_ratios(family: str) -> None:
    model, want = loaded(family), published(family)
    for name in ("w4/mae/reweight", "w3/mse/reweight"):
        means = Means.zero(2, 2)
        for stream in source(model, True):
            add_gradients_(means, model, stream)
        for kind, part in enumerate(("attn", "mlp")):
            got = means.averages()[:, kind] / 3  # the published loss is divided by the samples
            np.testing.assert_allclose(got, want[f"{name}/mean/{part}"], rtol=1e-4, atol=1e-12)


def logits(model: LoadedModel) -> Tensor:
    """Return the logits of every fourth token."""
    family, any_model = model.adapter.family, model.model
    mask = tensor(family, "attention_mask").long()
    with torch.no_grad():
        made: Tensor = any_model(
            inputs_embeds=tensor(family, "inputs_embeds"),
            attention_mask=mask,
            position_ids=positions(family),
        ).logits
    return made[:, ::4]


def positions(family: str) -> Tensor:
    """Return text positions that count pads, as the published wrapper has them."""
    place = torch.arange(44)[None].expand(3, -1)
    return place[None].expand(3, -1, -1) if family == "qwen2_vl" else place


def check_logits(family: str, name: str, asked: dict[str, Any], path: Path) -> None:
    """Round a fresh model with the scales of a file and compare its logits with published ones."""
    model, settings = loaded(family), {k: asked[k] for k in ("w_bit", "a_bit", "method")}
    cfg = EvalConfig(pseudo_quant=True, variant="reference", scale_path=str(path), **settings)
    pseudo_quantize_(model, cfg)
    real = tensor(family, "attention_mask").bool()[:, ::4]
    want = torch.from_numpy(published(family)[f"{name}/logits"])
    torch.testing.assert_close(logits(model)[real], want[real], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("family", "name"), CASES[::5])
def test_rounded_models(family: str, name: str, tmp_path: Path) -> None:
    """Scales go through a file; weights and activations are rounded as by the published code."""
    save_scales(tmp_path / "s.pt", run(family, name).entries)
    check_logits(family, name, fields(name), tmp_path / "s.pt")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["w3/mae/reweight", "w4/mse"])
def test_rounded_weights_are_equal_but_for_ties(family: str, name: str) -> None:
    want, model = published(family), run(family, name).model.model
    for key in [k for k in want if k.startswith(f"{name}/weight/")]:
        layer = key.removeprefix(f"{name}/weight/")
        got = model.get_parameter(f"model.language_model.layers.1.{layer}.weight").detach().numpy()
        off = ~np.isclose(got, want[key], rtol=1e-5, atol=1e-7)
        assert off.mean() <= TIES, f"{key}: {off.mean():.1e} of the entries differ"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_published_file_of_scales(family: str) -> None:
    entries = run(family, "w3/mae/reweight").entries
    filed = load_scales(FOLDER / f"mbq_scales_{family}.pt").entries
    for got, want in zip(filed, entries, strict=True):
        assert got.place == want.place
        torch.testing.assert_close(got.scales, want.scales, rtol=SCALE, atol=0)
