"""`transformers.Trainer` on a model with a CM-IBQ layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.errors import ConfigError
from cmibq.integrations.bottleneck import attach_cm_ibq, bridge_of
from cmibq.integrations.trainer import cm_ibq_callback
from cmibq.train.groups import scale_parameters
from tests.integrations.hosts import batch, make

pytest.importorskip("accelerate", reason="needs accelerate: pip install 'cmibq[train]'")

LAYER = {"hidden_dim": 16, "min_bits": 1, "stage1_bits": 4, "stage2_bits": 2, "beta": 0.5}


def rows(count: int = 8) -> list[dict[str, Any]]:
    """Return a data set of one family's batch, row by row."""
    whole = batch("llava", images=(1,) * count)
    return [{k: v[i] for k, v in whole.items()} for i in range(count)]


def trainer(model: Any, folder: Path, **more: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    args: dict[str, Any] = {"report_to": [], "save_strategy": "no", "disable_tqdm": True}
    args |= {"use_cpu": True, "seed": 3, "lr_scheduler_type": "constant", "logging_steps": 1}
    args |= {"dataloader_pin_memory": False, "remove_unused_columns": False} | more
    callback = cm_ibq_callback()
    made = Trainer(
        model,
        TrainingArguments(str(folder), **args),
        train_dataset=rows(),
        eval_dataset=rows(4),
        callbacks=[callback],
    )
    return made, callback


@pytest.mark.parametrize("last", [8, 6])
def test_accumulated_batches_weigh_as_one(tmp_path: Path, last: int) -> None:
    """One step of plain descent, in one batch and in four: the same parameters."""
    found = []
    for size, accumulated in ((4, 1), (1, 4), (2, 2)):
        model = make("llava")
        bridge = attach_cm_ibq(model, LAYER)
        model(**batch("llava", images=(1,) * 8))  # sets the running ranges
        bridge.layer.quantizer.momentum = 1e-12
        made, _ = trainer(
            model,
            tmp_path,
            optim="sgd",
            learning_rate=0.02,
            max_grad_norm=0.0,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
        )
        made.train_dataset = rows()[:last]
        made.train()
        found.append({n: p.detach().clone() for n, p in model.named_parameters()})
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.allclose(value, other[name], atol=2e-6, rtol=1e-4), name


def test_anneals_freezes_logs_and_evaluates(tmp_path: Path) -> None:
    model = make("llava")
    attach_cm_ibq(model, LAYER | {"hold_start": 0.0, "hold_end": 0.25, "alignment_weight": 0.1})
    made, callback = trainer(
        model, tmp_path, learning_rate=3e-3, max_steps=8, per_device_train_batch_size=4
    )
    made.train()
    bits = [row["cm_ibq/target_bits"] for row in callback.history]
    assert bits[0] == 4
    assert bits[-3:] == [2, 2, 2]
    assert bits == sorted(bits, reverse=True)
    names = {"reconstruction", "rate", "bitrate", "alignment", "total", "task"}
    assert {f"cm_ibq/{name}" for name in names} <= set(made.state.log_history[0])
    losses = [row["cm_ibq/task"] for row in callback.history]
    assert losses[-1] < losses[0]
    first = callback.history[0]
    whole = first["cm_ibq/task"] + first["cm_ibq/total"]
    assert made.state.log_history[0]["loss"] == pytest.approx(whole, abs=1e-3)
    told = made.evaluate()["eval_loss"]
    model.eval()
    with torch.no_grad():
        plain = model(**batch("llava", images=(1,) * 4)).loss
    assert told == pytest.approx(float(plain), abs=1e-4)
    assert bridge_of(model).share == 1.0


def test_ranges_and_prior_have_their_own_rate(tmp_path: Path) -> None:
    """Also after a run that went on from a checkpoint, and never in an optimiser of the user's."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            rates.append([g["lr"] for g in more["optimizer"].param_groups])

    rates: list[list[float]] = []
    more = {"max_steps": 2, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1}
    for resume in (False, str(tmp_path / "checkpoint-1")):
        model = make("llava")
        bridge = attach_cm_ibq(model, LAYER)
        made, _ = trainer(model, tmp_path, **more)
        made.add_callback(Watch())
        made.train(resume_from_checkpoint=resume)
        fast = {id(p) for p in made.optimizer.param_groups[-1]["params"]}
        assert fast == {id(p) for p in scale_parameters(bridge.layer)}
    assert rates == [[1e-3, 1e-3, 1e-2]] * 3
    made, _ = trainer(model, tmp_path)
    made.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert len(made.create_optimizer().param_groups) == 1
    with pytest.raises(ConfigError, match="scale_lr is -1"):
        cm_ibq_callback(scale_lr=-1)


def test_a_model_without_a_layer(tmp_path: Path) -> None:
    from cmibq.errors import ModelError

    made, _ = trainer(make("llava"), tmp_path, max_steps=1)
    with pytest.raises(ModelError, match="attach_cm_ibq"):
        made.train()
