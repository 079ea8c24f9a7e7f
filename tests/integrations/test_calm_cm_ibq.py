"""A composed tower and CM-IBQ behind its projector, in one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cmibq.integrations.bottleneck import attach_cm_ibq, bridge_of, check
from cmibq.integrations.calm import attach_calm
from cmibq.models.composed_host import calm_of, read_host, write_host
from cmibq.recipe.calm import CALMConfig
from tests.integrations.hosts import batch, make, prompt_of

transformers = pytest.importorskip("transformers")


def both(calm_first: bool) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = transformers.Dinov2Config(**sizes, image_size=28, patch_size=14)
    model, other = make("llava"), transformers.Dinov2Model(config)
    if not calm_first:
        attach_cm_ibq(model, {"hidden_dim": 16, "min_bits": 1})
    tower = attach_calm(model, other, CALMConfig(composition_layers=2, attention_heads=2))
    if calm_first:
        attach_cm_ibq(model, {"hidden_dim": 16, "min_bits": 1})
    for p in model.parameters():
        p.requires_grad_(False)
    for part in (tower.calm_modules, bridge_of(model)):
        part.requires_grad_(True)
    return model.train()


@pytest.mark.parametrize("calm_first", [True, False])
def test_they_train_save_and_reload_together(calm_first: bool, tmp_path: Path) -> None:
    model, inputs = both(calm_first), batch("llava", images=(1, 2))
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {".calm_modules." in n or ".cm_ibq." in n for n in learned} == {True}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(learned.values(), lr=1e-2)
    for _ in range(2):  # at the first step the gates are closed
        optimiser.zero_grad()
        model(**inputs).loss.backward()
        optimiser.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= set(learned)
    assert {n for n in learned if ".calm_modules." in n} <= moved
    assert any(".cm_ibq." in n for n in moved)
    assert set(bridge_of(model).last_terms) >= {"rate", "total", "task"}
    model.eval()
    with torch.no_grad():
        want = model(**prompt_of(inputs)).logits
        write_host(model, tmp_path)
        again = read_host(tmp_path)
        check(again)
        assert isinstance(calm_of(again), nn.Module)
        assert torch.equal(again(**prompt_of(inputs)).logits, want)
