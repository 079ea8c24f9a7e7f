from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cmibq.data import batches, encode, read_items
from cmibq.errors import ModelError
from cmibq.models import MODELS, adapter_of, check_groups, check_others, check_weights
from cmibq.search import apply_scales_
from tests.fixtures import SHAPES, make_model, make_processor

DECODERS = [
    ("llama", SHAPES["mha"], True),
    ("llama", SHAPES["gqa"], False),
    ("mistral", SHAPES["mha"] | {"sliding_window": 4}, True),
    ("qwen2", SHAPES["mha"] | {"num_key_value_heads": 2}, False),
]


def model_of(text: str, shape: dict[str, object]) -> torch.nn.Module:
    shape = {k: v for k, v in shape.items() if k != "attention_bias" or text == "llama"}
    model: torch.nn.Module = make_model(text=text, **shape)
    return model


@pytest.mark.parametrize(("text", "shape", "has_o"), DECODERS)
@torch.no_grad()
def test_fusing_random_scales_leaves_every_block_as_it_was(
    text: str, shape: dict[str, object], has_o: bool, items_path: Path
) -> None:
    model, processor = model_of(text, shape), make_processor()
    adapter = adapter_of(model)
    (batch,) = batches(encode(read_items(items_path), processor), processor)
    inputs = {"inputs_embeds": adapter.embed(model, batch), "attention_mask": batch.attention_mask}
    want = adapter.decoder(model)(**inputs).last_hidden_state
    modules = dict(model.named_modules())
    draw = torch.Generator().manual_seed(0)
    for name, block in adapter.blocks(model):
        groups = adapter.groups(name, block)
        assert [g.name for g in groups] == ["qkv", "o", "gate_up", "down"]
        published = adapter.groups(name, block, published=True)
        assert [g.name for g in published] == ["qkv", *["o"] * has_o, "gate_up", "down"]
        assert all((g.values is None) == (has_o or g.name != "o") for g in groups)
        for group in groups:
            width = model.get_parameter(f"{group.linears[0]}.weight").shape[1]
            scales = torch.exp(torch.randn(width, generator=draw))
            tied = scales if group.values is None else group.values.tie(scales)
            apply_scales_(modules, group, tied)
    got = adapter.decoder(model)(**inputs).last_hidden_state
    valid = batch.attention_mask.bool()
    torch.testing.assert_close(got[valid], want[valid], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("text", "shape", "has_o"), DECODERS)
def test_groups_cover_the_targets(text: str, shape: dict[str, object], has_o: bool) -> None:
    model = model_of(text, shape)
    adapter = MODELS["llava"]
    blocks = adapter.blocks(model)
    assert len(blocks) == shape["num_hidden_layers"]
    targets = adapter.targets(model)
    assert len(targets) == 7 * len(blocks)
    grouped = {n for b in blocks for g in adapter.groups(*b) for n in g.linears}
    assert grouped == set(targets)
    published = {n for b in blocks for g in adapter.groups(*b, published=True) for n in g.linears}
    rest = set() if has_o else {t for t in targets if t.endswith("o_proj")}
    assert published | rest == set(targets)
    assert adapter.groups(*blocks[0])[0].linears == tuple(
        f"model.language_model.layers.0.self_attn.{n}_proj" for n in "qkv"
    )
    for _, kinds in adapter.gradient_of:
        assert set(kinds) <= {"qkv", "o", "gate_up", "down"}


@torch.no_grad()
def test_embeddings_are_those_of_the_model(items_path: Path) -> None:
    model, processor = make_model(**SHAPES["mha"]), make_processor()
    adapter = adapter_of(model)
    (batch,) = batches(encode(read_items(items_path), processor), processor)
    assert batch.pixel_values is not None
    assert len(batch.pixel_values) < len(batch)
    got = model(
        inputs_embeds=adapter.embed(model, batch), attention_mask=batch.attention_mask
    ).logits
    want = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values[batch.image_index],
    ).logits
    torch.testing.assert_close(got, want)
    features = adapter.image_features(model, batch.joined)
    assert torch.equal(adapter.embed(model, batch, features), adapter.embed(model, batch))
    with pytest.raises(ModelError, match="processor and model do not belong together"):
        adapter.embed(model, batch, [f[:-1] for f in features])
    assert adapter.image_token_id(model) == processor.image_token_id
    assert adapter.lm_head(model) is model.lm_head


def test_weights_that_cannot_be_quantised_are_named() -> None:
    model = make_model(**SHAPES["mha"])
    targets = adapter_of(model).targets(model)
    widths = {n: model.get_parameter(f"{n}.weight").shape[1] for n in targets}
    check_groups(widths, 64)
    check_groups(widths, -1)
    check_weights(model, targets)
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj: w_group 48 .* 8, 16, 32"):
        check_groups(widths, 48)
    bad = model.get_parameter(f"{targets[-1]}.weight")
    for value in (float("nan"), float("inf")):
        bad.data[3, 4] = value
        with pytest.raises(ModelError, match=rf"{targets[-1]}: 1 of 8192 weights are NaN or inf"):
            check_weights(model, targets)
        check_others(model, targets)
    norm = next(n for n, p in model.named_parameters() if p.ndim == 1)
    model.get_parameter(norm).data[0] = float("nan")
    with pytest.raises(ModelError, match=rf"{norm}: 1 of \d+ weights are NaN or inf"):
        check_others(model, targets)


def test_a_block_of_another_make_is_refused() -> None:
    with pytest.raises(ModelError, match="is this model really of family 'llava'"):
        MODELS["llava"].groups("layers.0", torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_other_families_are_refused() -> None:
    with pytest.raises(ModelError, match="family 'Linear' is not supported; supported are llava"):
        adapter_of(torch.nn.Linear(2, 2))
