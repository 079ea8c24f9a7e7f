"""benchmarks/calm: rows of equal size, what they start from, and one run with two steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from benchmarks.calm import cells, collect, facts, page, pictures, tasks
from benchmarks.calm.eyes import Composed, folded
from benchmarks.calm.heads import answers
from benchmarks.calm.tasks import COMPOSED, MAIN, ROWS, Cell
from cmibq.demo.album import make_album
from cmibq.demo.composed import TileEyes
from cmibq.demo.tiles import KINDS

QUICK = tasks.Plan(steps=2, batch=4, pictures=24, asked=12)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setenv(cells.FOLDER, str(tmp_path))
    return tmp_path


def eyes_of(row: str) -> Any:
    return cells.build(Cell(row, plan=QUICK)).eval()


def test_rows_train_as_many_parameters():
    counts = {row: eyes_of(row).trained() for row in (*MAIN, *COMPOSED)}
    assert counts.pop("late_add") == counts.pop("add") < counts["calm"]
    most = max(abs(n - counts["calm"]) / counts["calm"] for n in counts.values())
    assert most < 0.004, counts


def test_gated_composition_starts_as_the_anchor_and_a_norm_does_not():
    album, rows = make_album("dev", 12), torch.arange(12)
    with torch.no_grad():
        before = cells.parts().anchor(pixel_values=album.anchor).last_hidden_state[:, 1:]
        assert torch.equal(eyes_of("calm").fused(album, rows), before)
        assert (eyes_of("cross").fused(album, rows) - before).abs().max() > 0.1


def test_fed_towers_see_what_running_ones_see():
    album, rows = make_album("dev", 12), torch.arange(12)
    eyes = eyes_of("bare")
    assert isinstance(eyes, Composed)
    with torch.no_grad():
        fed = eyes(album, rows)
        running = TileEyes(facts.whole(eyes), eyes.projector)(album, rows)
    torch.testing.assert_close(fed, running, rtol=1e-4, atol=1e-4)


def test_shuffled_rows_see_another_picture():
    album, rows = make_album("dev", 12), torch.arange(12)
    torch.manual_seed(0)
    with torch.no_grad():
        eyes = eyes_of("bare")
        straight = eyes(album, rows)
        eyes.shuffle = True
        other = eyes(album, rows)
    assert ((straight - other).abs().amax((1, 2)) > 1e-4).all()


def test_answers_follow_from_facts():
    album = make_album("dev", 12)
    tiles = album.tiles
    exact = {
        "digit": 20.0 * torch.eye(10)[torch.from_numpy(tiles.digits).clamp(min=0)],
        "hue": 20.0 * torch.eye(7)[torch.from_numpy(tiles.hues + 1)],
        "sum": 20.0 * torch.eye(18)[torch.from_numpy(tiles.sums)],
    }
    right, losses = answers(album, exact)
    assert right == [1] * 48
    assert max(losses) < 1e-3
    blind = {name: torch.zeros_like(value) for name, value in exact.items()}
    _, losses = answers(album, blind)
    kinds = [kind for some in album.kinds for kind in some]
    told = dict(zip(kinds, losses, strict=True))
    assert told["digit"] == pytest.approx(np.log(10))
    assert told["where"] == pytest.approx(np.log(4))
    assert told["new"] == pytest.approx(np.log(18))


def test_patches_of_a_tile_lie_side_by_side():
    states = torch.arange(17.0).reshape(1, 17, 1)
    assert folded(states)[0].tolist() == [
        [1, 2, 5, 6],
        [3, 4, 7, 8],
        [9, 10, 13, 14],
        [11, 12, 15, 16],
    ]


def test_eight_bits_stay_close():
    album, rows = make_album("dev", 12), torch.arange(12)
    eyes = eyes_of("bare")
    running = TileEyes(facts.whole(eyes), eyes.projector).eval()
    with torch.no_grad():
        exact, rounded = running(album, rows), facts.in_eight_bits(running)(album, rows)
    assert (rounded - exact).norm() < 0.1 * exact.norm()
    assert not torch.equal(rounded, exact)


def test_a_run_is_kept_and_told(work, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "RATES", {"": 1e-3})
    rows = ("calm", "anchor", "mof", "augmenting")
    for cell in tasks.cells_of(rows, seeds=(0, 1), plan=QUICK):
        first = cells.made(cell)
        kept = cells.finished(cell)
        assert kept is not None
        assert (kept["right"], kept["losses"]) == (first["right"], first["losses"])
        assert len(first["right"]) == 48
    monkeypatch.setattr(collect, "RATES", {"": 1e-3})
    told = collect.collect("dev", (0, 1), QUICK)
    assert set(told["rows"]) == set(rows)
    assert [bar["row"] for bar in told["bars"]] == ["anchor", "augmenting", "mof"]
    assert all(set(row["by_kind"]) == set(KINDS) for row in told["rows"].values())
    found = told["rows"]["calm"]["accuracy"]
    assert found["value"] == pytest.approx(np.mean(found["by_seed"]), rel=1e-3)
    text = page.filled("<!-- rows:begin -->\n<!-- rows:end -->", told)
    assert ROWS["calm"].title in text
    pictures.draw(told, tmp_path)
    assert (tmp_path / "calm-kinds.png").stat().st_size > 10_000


def test_a_stamp_changes_with_the_plan(work):
    cell = Cell("anchor", plan=QUICK)
    cells.made(cell)
    assert cells.finished(cell) is not None
    assert cells.finished(Cell("anchor", plan=tasks.Plan(steps=2, batch=4, pictures=25))) is None
