"""What breaks a training, or a trained layer, is named, and what need not break it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cmibq.errors import CmibqError, ConfigError, DataError, PackageError
from cmibq.nn.ib_layer import IBQuantizedLayer
from cmibq.recipe.cm_ibq import CMIBQConfig
from cmibq.train import stage_one_pretrain

CPU = torch.device("cpu")


def layer(**more: Any) -> IBQuantizedLayer:
    torch.manual_seed(0)
    fields = {"hidden_dim": 8, "min_bits": 0, "stage1_bits": 4, "stage2_bits": 2}
    return IBQuantizedLayer(CMIBQConfig(feature_dim=4, **(fields | more)))


def train(made: IBQuantizedLayer, batches: list[Any]) -> list[dict[str, float]]:
    return stage_one_pretrain(made, batches, torch.optim.AdamW(made.parameters(), lr=1e-2), CPU)


def batch(rows: int = 4, **more: Any) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    return {"features": torch.randn(rows, 3, 4, generator=draw)} | more


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 3, 4), "a batch of stage one has Tensor"),
        ((torch.zeros(2, 3, 4),), "a batch of stage one has tuple"),
        ({"features": [[1.0]]}, "features is a list"),
        ({"features": torch.zeros(2, 3, 5)}, "features has shape"),
        ({"features": torch.full((2, 3, 4), torch.nan)}, "holds NaN"),
        ({"features": torch.randn(2, 3, 4) * 1e30}, "not finite"),
        (batch(text_features=torch.ones(3, 4)), "one row of each per sample"),
        (batch(text_features=torch.ones(4, 5)), "text_features are 5 wide"),
        (batch(text_features=torch.ones(4, 4), text_ids=torch.ones(4).long()), "text_ids has"),
        (batch(text_features=torch.full((4, 4), torch.nan)), "not finite"),
        (batch(image_mask=torch.ones(4, 3)), "image_mask has shape"),
    ],
    ids=str,
)
def test_a_batch_that_does_not_fit(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(layer(alignment_weight=0.1), [given])


def test_a_training_that_diverges() -> None:
    made = layer()
    optimiser = torch.optim.AdamW(made.parameters(), lr=1e30)
    with pytest.raises(DataError, match=r"diverged; lower the learning rate|is not finite"):
        stage_one_pretrain(made, [batch()] * 4, optimiser, CPU)


def test_batches_with_little_in_them() -> None:
    made = layer(alignment_weight=0.1)
    text = torch.ones(1, 4)
    given = [batch(), batch(0), batch(1, text_features=text), batch(1, text_features=text * 0)]
    logs = train(made, [*given, batch(image_mask=torch.zeros(4, dtype=torch.bool))])
    assert [log["alignment"] for log in logs] == [0.0] * 5
    assert logs[1]["total"] == logs[4]["total"] == 0.0
    assert all(p.isfinite().all() for p in made.parameters())
    assert train(layer(), []) == []


def test_the_target_may_change_between_passes() -> None:
    made, rows = layer(), [batch()] * 3
    for target in (4.0, 2.0, 3.0):
        made.target_bits = target
        assert train(made, rows)[-1]["target_bits"] == target
        made.finalize_()
        made.eval()
        x = batch()["features"]
        assert int(made(x)[4].sum()) == 4 * target
        assert torch.equal(made.decompress(bytes(made.compress(x))), made(x)[0])
    for wrong in ("3", float("nan"), 8.5, None):
        with pytest.raises(ConfigError, match="target_bits is"):
            made.target_bits = wrong  # type: ignore[assignment]
    assert made.target_bits == 3.0


def test_a_damaged_state_dict() -> None:
    """Its integers may be anything; the layer computes, or says what is wrong."""
    made = layer()
    train(made, [batch()] * 3)
    made.target_bits = 2.0
    made.finalize_()
    held = {k: v.clone() for k, v in made.eval().state_dict().items()}
    stream = bytes(made.compress(batch()["features"]))
    for name, value in held.items():
        if value.is_floating_point() or not value.numel():
            continue
        for other in (torch.zeros_like(value), torch.full_like(value, 200)):
            again = layer().eval()
            again.load_state_dict(held | {name: other})
            try:
                again.decompress(stream)
                again(batch()["features"])
            except CmibqError:
                continue
    again.load_state_dict(held | {"bit_maps.table": torch.full_like(held["bit_maps.table"], 99)})
    with pytest.raises(PackageError, match=r"bit_maps\.table holds 99 bits"):
        again.decompress(stream)
