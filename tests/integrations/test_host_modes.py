"""A host with a layer in the ways that people train: before the projector, LoRA, compiled, bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.errors import ConfigError, ModelError
from cmibq.integrations.bottleneck import attach_cm_ibq, bridge_of, check, collect
from tests.integrations.hosts import batch, make

LAYER = {"hidden_dim": 8, "min_bits": 1, "stage1_bits": 4, "stage2_bits": 2, "beta": 0.5}


def steps(
    model: Any, rows: dict[str, Any], dtype: torch.dtype | None = None, count: int = 4
) -> list[float]:
    """Return the losses of some steps."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(count):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(**rows).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture(scope="module")
def plain() -> list[float]:
    """Losses of the model as it is."""
    model = make("llava")
    attach_cm_ibq(model, LAYER)
    return steps(model, batch("llava", images=(1, 1)))


def test_before_the_projector(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model, rows = make("llava_next"), batch("llava_next", images=(1, 1))
    fields = {"layer": LAYER | {"mode": "task", "alignment_weight": 0.1}, "position": "pre"}
    bridge = attach_cm_ibq(model, fields)
    layer = bridge.layer.config
    assert (layer.feature_dim, layer.task_dim, bridge.options.text_dim) == (16, 32, 32)
    (found,) = collect(model, rows)
    assert found["features"].shape[1:] == (4, 16)
    assert found["text_features"].shape[1:] == (32,)
    losses = steps(model, rows)
    assert losses[-1] < losses[0]
    assert bridge.last_terms["alignment"] > 0
    with torch.no_grad():
        want = model.eval()(**rows).logits
        model.save_pretrained(tmp_path)
        again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
        check(again)
        assert torch.equal(again(**rows).logits, want)


def test_where_before_the_projector_is_refused() -> None:
    fields = {"layer": LAYER, "position": "pre"}
    with pytest.raises(ConfigError, match="merges patches; take 'post'"):
        attach_cm_ibq(make("qwen2_vl"), fields)
    with pytest.raises(
        ConfigError, match="feature_dim is 32; the projector of this model takes 16"
    ):
        attach_cm_ibq(make("llava_next"), {"layer": LAYER | {"feature_dim": 32}, "position": "pre"})
    with pytest.raises(ConfigError, match="importance is 'rollout', which needs the attention"):
        attach_cm_ibq(make("llava"), LAYER | {"importance": "rollout"})
    with pytest.raises(ConfigError, match="position is 'front'"):
        attach_cm_ibq(make("llava"), fields | {"position": "front"})


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(plain: list[float], reentrant: bool) -> None:
    model = make("llava")
    bridge = attach_cm_ibq(model, LAYER)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert steps(model, batch("llava", images=(1, 1))) == plain
    assert int(bridge.layer.draws) == 4


@pytest.mark.filterwarnings("ignore")
def test_compiled(plain: list[float]) -> None:
    """In pieces: which image belongs to which row depends on the data."""
    model = make("llava")
    bridge = attach_cm_ibq(model, LAYER)
    compiled = torch.compile(model, backend="eager")
    losses = steps(compiled, batch("llava", images=(1, 1)), count=2)
    assert losses == pytest.approx(plain[:2], abs=1e-5)
    assert set(bridge.last_terms) >= {"rate", "task"}


def test_half_precision() -> None:
    rows = batch("llava", images=(1, 1))
    for cast in (False, True):
        model = make("llava")
        bridge = attach_cm_ibq(model, LAYER)
        model = model.to(torch.bfloat16) if cast else model
        losses = steps(model, rows, None if cast else torch.bfloat16)
        assert losses[-1] < losses[0]
        assert {p.dtype for p in bridge.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora(tmp_path: Path) -> None:
    """PEFT trains a copy of the layer beside its adapters: it is that one which is used."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    rows, options = batch("llava", images=(1, 1)), {"modules_to_save": ["cm_ibq"]}
    model = make("llava")
    first = attach_cm_ibq(model, LAYER)
    told = peft.LoraConfig(target_modules=["q_proj", "v_proj"], **options)
    model = peft.get_peft_model(model, told)
    used = bridge_of(model)
    assert used is not None
    assert used is not first
    losses = steps(model.train(), rows)
    assert losses[-1] < losses[0]
    assert (int(first.layer.draws), int(used.layer.draws)) == (0, 4)
    assert used.last_terms["rate"] > 0
    with torch.no_grad():
        want = model.eval()(**rows).logits
        model.save_pretrained(tmp_path)
        again = make("llava")
        attach_cm_ibq(again, LAYER)
        loaded = peft.PeftModel.from_pretrained(again, tmp_path).eval()
        assert torch.equal(loaded(**rows).logits, want)
        whole = loaded.merge_and_unload()
        check(whole)
        torch.testing.assert_close(whole(**rows).logits, want, atol=1e-3, rtol=0)
    with pytest.raises(ModelError, match="the adapter was trained with a CM-IBQ layer"):
        check(peft.PeftModel.from_pretrained(make("llava"), tmp_path))
