"""Layouts of other packages, by small modules of the same names and row orders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmibq.data import Encoded, collate, encode, read_items
from cmibq.errors import ModelError
from cmibq.io import ScaleEntry
from cmibq.models import HostProcessor, LoadedModel, read_family, verify_groups
from cmibq.models.hosts import INTERNVL2, INTERNVL2_LLAMA, LLAVA_LLAMA, internvl2_adapter
from cmibq.nn import PackedLinear
from cmibq.ptq import quantize_
from cmibq.recipe import QuantRecipe
from cmibq.search import apply_scales_
from tests.fixtures import make_tokenizer
from tests.models.families import write_talks
from tests.models.standins import InternVLChatModel, RMSNorm, llava_llama

LAYOUTS = ["llava_llama", "internlm2", "llama"]


def pixels(image: Any) -> torch.Tensor:
    """One tile of 8 x 8, two for wide pictures."""
    tiles = [image] if image.width < 30 else [image, image.transpose(0)]
    small = [np.asarray(t.resize((8, 8)), np.float32) / 255 for t in tiles]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)


def one_tile(image: Any) -> torch.Tensor:
    return pixels(image)[:1]


@pytest.fixture(params=LAYOUTS)
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    words = make_tokenizer()
    torch.manual_seed(0)
    if request.param == "llava_llama":
        model, adapter = llava_llama(), LLAVA_LLAMA
        tool = HostProcessor(words, one_tile, tokens=4)
    else:
        model = InternVLChatModel(request.param)
        adapter = internvl2_adapter(model)
        tool = HostProcessor(words, pixels, tokens=2, image_token_id=39, before=(37,), after=(38,))
    return LoadedModel(model.eval(), tool, adapter, Path())


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talks(tmp_path_factory.mktemp("talks"))


def samples_of(loaded: LoadedModel, talks: Path) -> list[Encoded]:
    return encode(read_items(talks), loaded.processor)


@torch.no_grad()
def logits(loaded: LoadedModel, samples: list[Encoded]) -> torch.Tensor:
    batch = collate(samples, loaded.processor)
    embeds = loaded.adapter.embed(loaded.model, batch)
    decoder: Any = loaded.adapter.decoder(loaded.model)
    out = decoder(inputs_embeds=embeds, attention_mask=batch.attention_mask, use_cache=False)
    made: torch.Tensor = loaded.adapter.lm_head(loaded.model)(out.last_hidden_state)
    return made[batch.attention_mask.bool()]


def test_images_stand_where_their_marks_are(loaded: LoadedModel, talks: Path) -> None:
    samples = samples_of(loaded, talks)
    several = loaded.adapter is not LLAVA_LLAMA
    assert [int(s.vision.sum()) for s in samples] == (
        [2, 4 + 2, 0, 2, 4, 2] if several else [4, 8, 0, 4, 8, 4]
    )
    assert np.isfinite(logits(loaded, samples).numpy()).all()


@torch.no_grad()
def test_scales_leave_the_output_as_it_was(loaded: LoadedModel, talks: Path) -> None:
    samples = samples_of(loaded, talks)
    verify_groups(loaded.adapter, loaded.model)
    want = logits(loaded, samples)
    modules = dict(loaded.model.named_modules())
    draw = torch.Generator().manual_seed(0)
    for _, name, block in loaded.adapter.numbered(loaded.model, "lm,vision"):
        groups = loaded.adapter.groups(name, block)
        assert "o" in [g.name for g in groups]
        for group in groups:
            width = loaded.model.get_parameter(f"{group.linears[0]}.weight").shape[1]
            scales = torch.exp(torch.randn(width, generator=draw))
            tied = scales if group.values is None else group.values.tie(scales)
            apply_scales_(modules, group, tied)
    torch.testing.assert_close(logits(loaded, samples), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "scope"), [("rtn", "lm"), ("awq", "lm,projector,vision"), ("mbq", "lm")]
)
def test_quantised_in_memory(loaded: LoadedModel, talks: Path, method: str, scope: str) -> None:
    samples = samples_of(loaded, talks)
    want = logits(loaded, samples)
    names = loaded.adapter.targets(loaded.model, scope)
    recipe = QuantRecipe(
        method=method, w_bit=8, w_group=8, n_grid=3, scope=scope, reweight=method == "mbq"
    )
    entries = quantize_(loaded, [] if method == "rtn" else samples, recipe)
    assert all(isinstance(e, ScaleEntry) for e in entries)
    blocks = {"rtn": 0, "awq": 4, "mbq": 2}[method]
    vision = 6 if method == "awq" else 0
    assert len(entries) == (8 if blocks else 0) + vision
    assert all(isinstance(loaded.model.get_submodule(n), PackedLinear) for n in names)
    got = logits(loaded, samples)
    assert 0 < float((got - want).norm() / want.norm()) < 0.1


def test_published_methods_leave_grouped_values_alone(loaded: LoadedModel) -> None:
    name, block = loaded.adapter.blocks(loaded.model)[0]
    found = loaded.adapter.groups(name, block, published=True)
    assert [g.name for g in found] == ["qkv", "gate_up", "down"]


def test_a_norm_that_adds_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = InternVLChatModel("internlm2").eval()
    verify_groups(INTERNVL2, model)
    before = [p.clone() for p in model.parameters()]
    monkeypatch.setattr(RMSNorm, "forward", lambda self, x: (1 + self.weight) * x / x.norm())
    with pytest.raises(ModelError, match=r"group 'qkv' of .*layers\.0: scales between .* 1 \+ wei"):
        verify_groups(INTERNVL2, model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_other_decoders_and_tiles_are_refused() -> None:
    model = InternVLChatModel("internlm2")
    model.config.llm_config.model_type = "phi3"
    with pytest.raises(ModelError, match="'phi3' is not supported; supported are internlm2, llama"):
        internvl2_adapter(model)
    assert INTERNVL2_LLAMA.decoders == ("llama", "qwen2")
    tiled = llava_llama()
    tiled.config.mm_patch_merge_type = "spatial_unpad"
    with pytest.raises(ModelError, match="known with 'flat'"):
        LLAVA_LLAMA.image_features(tiled, {"pixel_values": torch.zeros(1, 3, 8, 8)})


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]},
        {"model_type": "internvl_chat"},
    ],
)
def test_folders_that_only_their_own_code_opens_say_so(tmp_path: Path, fields: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=r"only its own code opens; .*cmibq\.ptq\.quantize_"):
        read_family(tmp_path)


def test_begin_tokens_come_once() -> None:
    class Words:
        bos_token_id = 1

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [1] * add_special_tokens + [len(w) for w in text.split()]}

    tool = HostProcessor(Words(), pixels, tokens=2)
    assert tool.tokenizer("see <image> here")["input_ids"] == [1, 3, -200, 4]
    assert tool.tokenizer(["<image> a"])["input_ids"] == [[1, -200, 1]]
    assert replace(tool, image_token="<img>").tokenizer("<img>")["input_ids"] == [1, -200]
