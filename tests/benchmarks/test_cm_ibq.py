"""benchmarks/cm_ibq: curves by hand, coders, and one run with three steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cm_ibq import (
    cells,
    collect,
    factorized,
    fit,
    images,
    judge,
    page,
    pictures,
    tasks,
    vlm,
)
from benchmarks.cm_ibq.coders import Uniform, water_filling
from benchmarks.cm_ibq.predict import coding_gain
from benchmarks.cm_ibq.streams import coded_bytes, counted
from benchmarks.cm_ibq.tasks import Cell
from cmibq.fileio import read_json
from cmibq.nn.prior import DiscretePrior

QUICK = fit.Plan(steps=5, batch=4, pictures=24)


def test_bytes_at_a_quality_by_hand():
    size, quality = np.array([2.0, 8.0, 4.0, 16.0]), np.array([0.5, 0.9, 0.4, 0.8])
    # 4 and 16 bytes are beaten; halfway from 0.5 to 0.9 are sqrt(2 * 8) bytes.
    assert judge.bytes_at(size, quality, 0.7) == pytest.approx(4.0)
    assert judge.bytes_at(size, quality, 0.3) == 2.0
    assert np.isnan(judge.bytes_at(size, quality, 0.95))


def test_bd_rate_by_hand():
    quality = np.array([0.2, 0.6, 0.8])
    size = np.array([1.0, 3.0, 9.0])
    assert judge.bd_rate((0.75 * size, quality), (size, quality)) == pytest.approx(-0.25)
    apart = np.array([0.9, 0.95, 0.99])
    assert np.isnan(judge.bd_rate((size, apart), (size, quality)))
    # Log bytes 0..2 over qualities 0..1 against 1 throughout: the mean difference is 0.
    one = np.exp([0.0, 2.0]), np.array([0.0, 1.0])
    flat = np.exp([1.0, 1.0 + 1e-12]), np.array([0.0, 1.0])
    assert judge.bd_rate(one, flat) == pytest.approx(0.0, abs=1e-9)


def test_comparisons_are_paired_and_have_the_interval_of_the_scans():
    rng = np.random.default_rng(0)
    level = np.ones(400)
    right = [(rng.random(400) < p).astype(float) for p in (0.9, 0.99)]
    sizes = [np.full(400, 4.0), np.full(400, 9.0)]
    points = {
        "a": list(zip([0.5 * s for s in sizes], right, strict=True)),
        "b": list(zip(sizes, right, strict=True)),
    }
    made = judge.Curves(points, level, [(i,) for i in range(400)], resamples=50)
    found = made.bd_rate("a", "b")
    assert found.value == pytest.approx(-0.5)
    assert found.stderr < 1e-9
    below = made.bytes_below("b", 0.05)
    assert 4 < below.low < below.value < below.high <= 9
    assert made.saving("a", "b", 0.05).value == pytest.approx(-0.5)


def test_water_filling_by_hand():
    # Each bit quarters a channel's distortion: 64, 16, 4, 1 are level after 3, 2, 1, 0 bits.
    assert water_filling(torch.tensor([64.0, 16.0, 4.0, 1.0]), 6).tolist() == [3, 2, 1, 0]


def test_coding_gain_by_hand():
    assert coding_gain(torch.full((5,), 3.0)) == pytest.approx(0.0)
    assert coding_gain(torch.tensor([1.0, 16.0])) == pytest.approx(0.5 * np.log2(8.5 / 4))


def test_the_prior_learns_the_rate_alone_where_codes_have_a_fixed_length():
    torch.manual_seed(0)
    coder = Uniform(torch.randn(64, 4, 8), 6, "lsq", 2)
    sent = coder.send(torch.randn(8, 4, 8))
    fit._learn_apart(coder, sent.rate.mean())
    moved = {name for name, p in coder.named_parameters() if p.grad is not None}
    assert moved == {f"prior.{n}" for n, _ in coder.prior.named_parameters()}


def test_streams_of_baselines_take_the_information_of_their_codes():
    torch.manual_seed(0)
    rates, bits = DiscretePrior(3).tables().detach(), torch.tensor([2.0, 0.0, 1.0])
    codes = torch.tensor([[[0, 0, 1], [3, 0, 0]], [[1, 0, 1], [2, 0, 1]]]).byte()
    told = [float(rates[0, 3 + c[0]] + rates[2, 1 + c[2]]) for row in codes.tolist() for c in row]
    sizes = coded_bytes(codes, rates, bits)
    for size, information in zip(sizes, (sum(told[:2]), sum(told[2:])), strict=True):
        assert information / 8 - 0.01 <= size <= information / 8 + 1.01
    kept = torch.tensor([[False, False], [True, True]])
    assert coded_bytes(codes, rates, bits, kept) == [0, sizes[1]]


def test_codes_are_counted_where_the_tables_have_them():
    found = counted(torch.tensor([[0, 3, 0], [1, 3, 0]]).byte(), torch.tensor([1.0, 2.0, 0.0]))
    assert found[0, 1:3].tolist() == [1, 1]
    assert found[1, 3:7].tolist() == [0, 0, 0, 2]
    assert found.sum(1).tolist() == [2, 2, 2]


def test_a_token_pays_for_its_own_range():
    torch.manual_seed(0)
    features = torch.randn(64, 4, 8)
    plain, own = (Uniform(features, 6, kind, 2) for kind in ("channel", "token"))
    assert plain.eval().send(features).nominal == 4 * 6 * 2
    found = own.eval().send(features)
    assert found.nominal == 4 * 6 * 2 + 4 * 16
    z = own.encoder(features)
    span = z.amax(2) - z.amin(2)
    sent = own.decoder.weight.pinverse() @ (found.features - own.decoder.bias)[..., None]
    assert float(((sent[..., 0] - z).abs() <= span[..., None] / 6 + 0.05).float().mean()) == 1.0


def test_pictures_lose_and_headers_are_told_apart():
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:10, :10] = (200, 30, 30)
    for how in ("jpeg", "webp"):
        best, whole, bare = images.compressed(pixels, how, 95)
        worst, small, _ = images.compressed(pixels, how, 1)
        assert small <= whole
        assert 0 < bare < whole
        difference = [np.abs(p.astype(int) - pixels).mean() for p in (best, worst)]
        assert difference[0] < difference[1]


def test_grading_agrees_with_the_demo():
    from cmibq.demo.grading import grade

    seen, model = vlm.material("demo", "dev", 6), vlm.frozen("demo")
    right, losses = model.grade(seen.features, seen.asked)
    theirs = grade(model.model, list(zip(seen.pixels, seen.asked, strict=True)))
    assert right == [int(r) for r in theirs[0]]
    np.testing.assert_allclose(losses, theirs[1], atol=1e-4)


def test_plain_rounding_at_equal_bytes_by_hand():
    # At 2 bytes, halfway from 1 to 4, plain rounding has 75 %: 15 points less than the row.
    means = np.array([2.0, 0.9, 1.0, 0.5, 4.0, 1.0])
    assert collect._at_bytes(means) == pytest.approx(-0.15)
    below = np.array([0.5, 0.9, 1.0, 0.5, 4.0, 1.0])  # its smallest point stands for less
    np.testing.assert_allclose(collect._at_bytes(np.stack([means, below])), [-0.15, -0.4])


def test_costs_are_the_losses_of_single_questions():
    seen, model = vlm.material("demo", "dev", 3), vlm.frozen("demo")
    pairs = [pairs[0] for pairs in seen.asked]
    found = model.costs(seen.features, pairs)
    for row, pair in enumerate(pairs):
        alone = model.loss(seen.features[row : row + 1], [[pair]])
        torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("row", ["token", "klt", "top", "ours", "task", "factorized"])
def test_a_cell_is_made_once_and_asks_other_questions_without_training(row, tmp_path, monkeypatch):
    if row == "factorized" and not factorized.installed():
        pytest.skip("needs compressai: pip install --no-deps compressai")
    monkeypatch.setenv(cells.FOLDER, str(tmp_path))
    few = vlm.material("demo", "dev", 5)
    monkeypatch.setattr(cells, "material", lambda model, split, n=0: vlm.material(model, split, 5))
    cell = Cell(row, 4, 2, 1e-3, plan=QUICK)
    found = cells.made(cell)
    assert len(found["right"]) == len(found["losses"]) == sum(map(len, few.asked))
    streams = len(found["right"]) if row == "task" else len(few.asked)
    assert len(found["bytes"]) == len(found["bits"]) == streams
    bits, sizes = np.array(found["bits"]), np.array(found["bytes"])
    # A header, beside the codes, and the end of a range coder's stream.
    side = {"ours": 9, "task": 9, "token": 9, "top": 2}.get(row, 1)
    assert bool((sizes >= bits / 8 - 1).all())
    assert bool((sizes <= bits / 8 + side + 0.1).all())
    monkeypatch.setattr(cells, "fit_", None)  # nothing is trained again
    again = cells.made(Cell(row, 4, 2, 1e-3, plan=QUICK, split="test"))
    assert again["record"] == found["record"]
    assert cells.finished(cell)["bytes"] == found["bytes"]


def test_results_from_cells_fill_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv(cells.FOLDER, str(tmp_path))
    for module in (cells, collect):
        monkeypatch.setattr(module, "material", lambda m, split, n=0: vlm.material(m, split, 5))
    plan = tasks.Plan()
    rng = np.random.default_rng(0)
    made = [c for c in tasks.image_cells(split="test") if c.row in ("float", "webp")]
    made += tasks.cells_of(("ours", "klt", "lsq"), seeds=(0, 1), split="test", plan=plan)
    made += tasks.cells_of(("low",), seeds=(0,), split="test", plan=plan)
    made += tasks.left_out_cells("sum", seeds=(0,), split="test")
    for number, cell in enumerate(made):
        told = {"right": rng.integers(2, size=20).tolist(), "losses": [0.1 + number] * 20}
        told |= {"bytes": [number + 2] * 5, "nominal": 16.0, "record": {"seconds": 1.0}}
        path = cells._path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told | {"stamp": cells._stamp(cell)}))
    found = collect.collect("test", seeds=(0, 1))
    assert found["questions"] == 20
    assert {"ours", "klt", "lsq", "lsq, fixed", "webp"} <= set(found["rows"])
    assert all(p["bytes"] == 2 for p in found["rows"]["lsq, fixed"])
    assert len(found["rows"]["ours"]) == len(tasks.ROWS["ours"].points + tasks.ROWS["low"].points)
    assert "low" not in found["rows"]
    told = {r["row"]: r for r in found["left_out"][0]["rows"]}
    assert found["left_out"][0]["kind"] == "sum"
    assert set(told) == {"ours", "task", "lsq"}
    assert told["lsq"]["more"] is None
    assert told["ours"]["more"]["value"] is not None
    text = page.filled(page.PAGE.read_text(), found)
    assert "LSQ, per channel, fixed length" in text
    pictures.draw(found, tmp_path)
    assert (tmp_path / "cm-ibq-rates.png").stat().st_size > 10000


def test_the_page_is_the_one_of_the_results():
    results = Path(judge.__file__).with_name("results.json")
    text = page.PAGE.read_text()
    assert page.filled(text, read_json(results)) == text
