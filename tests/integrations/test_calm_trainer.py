"""`transformers.Trainer` on a model with a composed vision tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.errors import ModelError
from cmibq.integrations.calm import attach_calm
from cmibq.integrations.calm_trainer import calm_callback
from cmibq.models.composed import watched
from cmibq.recipe.calm import CALMConfig
from tests.integrations.hosts import batch, make

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'cmibq[train]'")


def rows(count: int = 8) -> list[dict[str, Any]]:
    whole = batch("llava", images=(1,) * count)
    return [{k: v[i] for k, v in whole.items()} for i in range(count)]


def composed() -> Any:
    import transformers as hf

    model = make("llava")
    config = hf.Dinov2Config(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
    )
    model.requires_grad_(False)
    torch.manual_seed(1)
    shape = CALMConfig(composition_layers=2, attention_heads=4)
    attach_calm(model, hf.Dinov2Model(config), shape)
    return model


def trainer(model: Any, folder: Path) -> tuple[Any, Any]:
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(
        str(folder), report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, seed=3,
        logging_steps=1, max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3,
        gradient_accumulation_steps=2, dataloader_pin_memory=False, remove_unused_columns=False,
        eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    callback = calm_callback()
    data = {"train_dataset": rows(), "eval_dataset": rows(4)}
    return Trainer(model, args, callbacks=[callback], **data), callback


def test_entropy_and_gradients_are_logged_and_only_fusions_change(tmp_path: Path) -> None:
    model = composed()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    made, callback = trainer(model, tmp_path)
    made.train()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("calm_modules" in n for n in changed)
    told = [row for row in callback.history if "train_loss" in row]
    assert [row["step"] for row in told] == [1, 2, 3]
    for row in told:
        assert row["calm_module_grad_norm"] > 0
        cells = [v for k, v in row.items() if k.startswith("attention_entropy/")]
        assert len(cells) == 2 * 4
        assert row["attention_entropy"] == pytest.approx(sum(cells) / 8)
        assert 0 < row["attention_entropy"] <= 1.61  # at most ln(5): five tokens
    assert any("attention_entropy" in row for row in made.state.log_history)
    assert callback._seen == []
    with watched() as seen:  # nobody else watches any more
        model(**batch("llava", images=(1, 1)))
    assert len(seen) == 1


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no composed vision tower; call attach_calm"):
        trainer(make("llava"), tmp_path)[0].train()
    model = composed()
    model.model.vision_tower.anchor_tower.requires_grad_(True)
    with pytest.raises(ModelError, match="of the anchor_tower are not frozen"):
        trainer(model, tmp_path)[0].train()
