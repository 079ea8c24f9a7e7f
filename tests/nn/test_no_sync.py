"""A training step off the CPU never asks the device for a number, after the first step.

Tensors of the device meta stand in for one: they have no values to give.
"""

from __future__ import annotations

import pytest
import torch

from cmibq.nn.ib_layer import CMIBQConfig, IBQuantizedLayer
from cmibq.nn.ib_maps import HostIntegers
from cmibq.ops import noise
from cmibq.train.losses import composite


def elsewhere(config: CMIBQConfig) -> IBQuantizedLayer:
    """Return a layer on the device meta that knows its integers, as after a first step."""
    layer = IBQuantizedLayer(config).train()
    parts = [m for m in layer.modules() if isinstance(m, HostIntegers)]
    held = [
        {
            n: m._read(n)
            for n, b in m.named_buffers(recurse=False)
            if not b.ndim and not b.is_floating_point()
        }
        for m in parts
    ]
    layer.to("meta")
    for part, values in zip(parts, held, strict=True):
        for name, value in values.items():
            part._write(name, value)
    if layer.prior is not None:
        layer.prior._write("started", 1)
    return layer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rate": "gaussian"},
        {"mode": "task", "task_dim": 4},
        {"token_gain": True},
        {"stochastic_rounding": True},
        {"budget": "soft"},
    ],
    ids=str,
)
def test_training_step(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_table", lambda d: torch.zeros(3, 496, device=d))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: False)  # meta has none
    config = CMIBQConfig(feature_dim=8, hidden_dim=16, **options)
    layer = elsewhere(config)
    x, task = torch.ones(2, 3, 8, device="meta"), torch.ones(2, 4, device="meta")
    r = layer.run(x, task if config.mode == "task" else None, target_bits=4.5)
    names = ("quantised", "reconstructed", "mu", "logvar", "bit_allocation", "rate")
    found = dict(zip(names, r, strict=False)) | {"features": x}
    composite(config, found, 4.5).total.backward()
    assert layer.encoder.weight.grad is not None
    assert layer.decoder.weight.grad is not None
