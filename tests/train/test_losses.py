"""The loss terms: hand-worked values, gradients, masks, and errors that say what is wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cmibq.errors import DataError
from cmibq.recipe.cm_ibq import CMIBQConfig
from cmibq.train import AlignmentHead, alignment_loss, bitrate_loss, composite, gaussian_rate
from cmibq.train.losses import ib_loss

CONFIG = CMIBQConfig(feature_dim=3, min_bits=0, stage1_bits=4, alignment_weight=1.0)


def found(rows: int = 2, **more: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    made: dict[str, Any] = {
        "quantised": torch.randn(rows, 2, 3),
        "reconstructed": torch.randn(rows, 2, 3),
        "features": torch.randn(rows, 2, 3),
        "mu": torch.randn(rows, 2, 3),
        "logvar": torch.zeros(3),
        "bit_allocation": torch.full((3,), 4.0),
        "rate": torch.arange(1.0, rows + 1),
        "text_features": torch.randn(rows, 3),
    }
    return made | more


def test_terms_by_hand() -> None:
    """Errors of 1 and 3, rates of 6 and 12 bits over 6 elements: 1.5 bits, times ln 2."""
    told = found(features=torch.zeros(2, 2, 3), rate=torch.tensor([6.0, 12.0]))
    told["reconstructed"] = torch.ones(2, 2, 3) * torch.tensor([1.0, math.sqrt(3)])[:, None, None]
    terms = composite(CONFIG, told | {"text_features": None}, 4.0)
    assert float(terms.reconstruction) == pytest.approx(2.0)
    assert float(terms.rate) == pytest.approx(1.5 * math.log(2))
    assert float(terms.alignment) == 0
    want = 2.0 + CONFIG.beta * 1.5 * math.log(2)
    assert float(terms.total) == pytest.approx(want)


def test_bitrate_acts_with_a_soft_budget_only() -> None:
    """Mean bits of 4 and a target of 3: 0 where the budget is hard, whatever gamma is."""
    soft = CMIBQConfig(feature_dim=3, min_bits=0, stage1_bits=4, budget="soft")
    told = found(text_features=None)
    assert float(composite(CONFIG, told, 3.0, gamma=9.0).bitrate) == 0.0
    terms = [composite(soft, told, 3.0, gamma=gamma) for gamma in (0.0, 2.0)]
    assert float(terms[0].bitrate) == 1.0
    assert float(terms[1].total - terms[0].total) == pytest.approx(2.0)
    assert float(bitrate_loss(torch.tensor([[2.0, 4.0], [4.0, 6.0]]), 3.0)) == 2.0


def test_rows_without_an_image_count_nowhere() -> None:
    told = found(3, rate=torch.tensor([6.0, 100.0, 12.0]), bit_allocation=torch.ones(3, 3) * 4)
    told["bit_allocation"][1] = 7
    told["reconstructed"][1] = math.nan
    soft = CMIBQConfig(
        feature_dim=3, min_bits=0, stage1_bits=4, budget="soft", alignment_weight=1.0
    )
    masked = composite(soft, told | {"image_mask": torch.tensor([True, False, True])}, 4.0)
    rows = [0, 2]
    kept = {k: v[rows] if v.shape[0] == 3 and v.ndim > 1 else v for k, v in told.items()}
    kept["rate"] = told["rate"][rows]
    alone = composite(soft, kept, 4.0)
    for name, value in masked._asdict().items():
        assert float(value) == pytest.approx(float(getattr(alone, name)), rel=1e-5), name
    nothing = composite(soft, told | {"image_mask": torch.zeros(3, dtype=torch.bool)}, 4.0)
    assert float(nothing.total) == 0


def test_gaussian_rate_by_hand() -> None:
    """mu 1, variance 1: half a nat; mu 0, variance 4: (4 - 1 - ln 4) / 2 nats."""
    rate = gaussian_rate(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)]]))
    assert float(rate) == pytest.approx((0.5 + (3 - math.log(4)) / 2) / math.log(2))
    config = CMIBQConfig(feature_dim=3, min_bits=0, stage1_bits=4, rate="gaussian")
    told = found(logvar=torch.zeros(2, 2, 3), rate=None)
    want = gaussian_rate(told["mu"], told["logvar"]).mean() * math.log(2) / 6
    assert float(composite(config, told, 4.0).rate) == pytest.approx(float(want), rel=1e-6)


def test_alignment_by_hand() -> None:
    """Two orthogonal pairs at temperature 1: log(1 + 1/e) each way."""
    rows = torch.eye(2)
    assert float(alignment_loss(rows, rows, 1.0)) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(alignment_loss(rows, rows.flip(0), 1.0)) == pytest.approx(
        math.log(1 + math.e), rel=1e-6
    )


def test_rows_with_the_same_text_are_positives() -> None:
    """Three rows, the first two alike: wherever their padding is."""
    v, t = torch.randn(3, 4), torch.randn(3, 4)
    ids = torch.tensor([[7, 8, -1], [-1, 7, 8], [9, 9, 9]])
    s = torch.nn.functional.normalize(v, dim=1) @ torch.nn.functional.normalize(t, dim=1).T
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()

    def one_way(s: Tensor) -> float:
        p = s.softmax(1)
        return float(-torch.stack([p[i][same[i]].sum().log() for i in range(3)]).mean())

    want = (one_way(s) + one_way(s.T)) / 2
    assert float(alignment_loss(v, t, 1.0, text_ids=ids)) == pytest.approx(want, rel=1e-5)
    assert float(alignment_loss(v, t, 1.0, text_ids=torch.ones(3, 2).long())) == 0


def test_batch_of_one_empty_text_and_no_image_give_nothing() -> None:
    v = torch.randn(2, 4, requires_grad=True)
    for text, mask in (
        (torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0]]), None),
        (torch.randn(2, 4), torch.tensor([False, True])),
        (torch.zeros(2, 4), None),
    ):
        loss = alignment_loss(v, text, 0.07, mask=mask)
        assert float(loss.detach()) == 0
        (grad,) = torch.autograd.grad(loss, v)
        assert bool((grad == 0).all())
    assert float(alignment_loss(v[:1].detach(), torch.randn(1, 4), 0.07)) == 0


def test_text_that_is_nan_where_there_is_no_image_does_no_harm() -> None:
    v, text = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    text[2] = math.nan
    loss = alignment_loss(v, text, 0.1, mask=torch.tensor([True, True, False]))
    (grad,) = torch.autograd.grad(loss, v)
    assert bool(torch.isfinite(grad).all())
    assert float(loss.detach()) == pytest.approx(
        float(alignment_loss(v[:2].detach(), text[:2], 0.1)), rel=1e-6
    )


def test_head_projects_and_learns_its_temperature() -> None:
    torch.manual_seed(0)
    head = AlignmentHead(5, 3, temperature=0.5)
    loss = head(torch.randn(4, 5), torch.randn(4, 3))
    loss.backward()
    assert float(head.temperature.detach()) == pytest.approx(0.5)
    assert head.log_temperature.grad is not None
    assert head.projection is not None
    assert head.projection.weight.grad is not None
    assert AlignmentHead(4, 4).projection is None
    head.log_temperature.data.fill_(-50.0)
    assert float(head.temperature.detach()) == pytest.approx(0.01)


def test_gradients_are_those_of_finite_differences() -> None:
    """In float64, through the losses; `alignment_loss` computes in float32 otherwise."""
    torch.manual_seed(1)
    x, y = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bits = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    logvar = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    gradcheck = torch.autograd.gradcheck
    assert gradcheck(lambda a, b: sum(ib_loss(a, b, gaussian_rate(b, b), 4)), (x, y))
    assert gradcheck(lambda a: bitrate_loss(a, 0.3), (bits,))
    assert gradcheck(gaussian_rate, (x, logvar))
    ids = torch.tensor([[1], [1], [2]])
    assert gradcheck(lambda a, b: alignment_loss(a, b, 0.7, text_ids=ids), (x, y))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mu": None}, "cm_ibq has no mu; return what the layer gave"),
        ({"features": torch.zeros(2, 3)}, "reconstructed has shape"),
        ({"rate": None}, "cm_ibq has no rate"),
        ({"rate": torch.zeros(3)}, "rate has shape"),
        ({"image_mask": torch.ones(3, dtype=torch.bool)}, "image_mask has shape"),
        ({"text_features": torch.zeros(2, 5)}, "AlignmentHead.3, 5."),
        ({"text_features": torch.zeros(4, 3)}, "one row of each per sample"),
        ({"text_ids": torch.zeros(4, 3)}, "text_ids has 4 rows"),
        ({"quantised": None}, "no quantised"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        composite(CONFIG, found(**change), 4.0)
