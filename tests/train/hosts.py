"""A tiny host with a layer inside, and data for both stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmibq.nn.ib_layer import IBQuantizedLayer
from cmibq.recipe.cm_ibq import CMIBQConfig

WIDTH, TOKENS = 4, 2


def config(**more: Any) -> CMIBQConfig:
    fields: dict[str, Any] = {
        **{"feature_dim": WIDTH, "task_dim": 3, "hidden_dim": 8, "min_bits": 0},
        **{"stage1_bits": 4.0, "stage2_bits": 2.0},
    }
    return CMIBQConfig(**fields | more)


class Host(nn.Module):
    """A projector, the layer, a head, and a classification of the mean token."""

    def __init__(self, settings: CMIBQConfig, *, whole: bool = True) -> None:
        super().__init__()
        self.projector = nn.Linear(WIDTH, settings.feature_dim)
        self.cm_ibq = IBQuantizedLayer(settings)
        self.head = nn.Linear(settings.feature_dim, 3)
        self.whole = whole

    def forward(self, batch: dict[str, Tensor], target_bits: float | None = None) -> dict[str, Any]:
        features = self.projector(batch["vision_features"])
        told = self.cm_ibq.run(features, batch.get("task_embedding"), target_bits=target_bits)
        names = ("quantised", "reconstructed", "mu", "logvar", "bit_allocation", "rate")
        found = dict(zip(names, told, strict=True)) | {"features": features}
        if not self.whole:
            del found["rate"]
        found["text_features"] = batch["text_features"]
        logits = self.head(found["reconstructed"]).mean(1)
        loss = nn.functional.cross_entropy(logits, batch["labels"])
        return {"loss": loss, "cm_ibq": found}


def host(seed: int = 0, *, whole: bool = True, **more: Any) -> Host:
    torch.manual_seed(seed)
    return Host(config(**more), whole=whole)


def data(batches: int = 6, rows: int = 4, seed: int = 5) -> list[dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [
        {
            "vision_features": torch.randn(rows, TOKENS, WIDTH, generator=rng),
            "features": torch.randn(rows, TOKENS, WIDTH, generator=rng),
            "task_embedding": torch.randn(rows, 3, generator=rng),
            "text_features": torch.randn(rows, WIDTH, generator=rng),
            "labels": torch.randint(3, (rows,), generator=rng),
        }
        for _ in range(batches)
    ]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Return the names of what differs."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
