"""The host model as stage two calls it."""

from __future__ import annotations

import pytest
import torch

from cmibq.integrations import terms
from cmibq.integrations.bottleneck import attach_cm_ibq
from cmibq.integrations.hostloss import HostLoss
from cmibq.train import composite
from tests.integrations.hosts import batch, make

LAYER = {"hidden_dim": 8, "min_bits": 0, "stage1_bits": 4, "stage2_bits": 2}


def test_terms_are_found_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the stage, from the diagnostics; they are those that the bridge would have found."""
    model, rows = make("llava"), batch("llava", images=(1, 1))
    bridge = attach_cm_ibq(model, LAYER)
    model(**rows)
    bridge.layer.quantizer.momentum = 1e-12
    calls = []
    monkeypatch.setattr(terms, "composite", lambda *a, **k: calls.append(1) or composite(*a, **k))
    draws = bridge.layer.draws.clone()
    whole = model(**rows)
    bridge.layer.draws.copy_(draws)
    told = HostLoss(model, bridge)(rows)
    assert len(calls) == 1
    found = composite(bridge.layer.config, told["cm_ibq"][0], bridge.layer.target_bits)
    torch.testing.assert_close(told["loss"] + found.total, whole.loss)
