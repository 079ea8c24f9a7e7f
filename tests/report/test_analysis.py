from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cmibq.errors import DataError
from cmibq.eval.samples import Sample
from cmibq.report.analysis import build_table, label
from cmibq.report.collect import Run, load_runs


def make_run(
    group: str, method: str, right: list[bool], bits: int = 3, acts: int = 16, lost: float = 0.1
) -> Run:
    samples = tuple(
        Sample(
            id=str(i),
            kind="even" if i % 2 else "odd",
            scans=(i,),
            question="?",
            answer="yes",
            pred="yes" if r else "no",
            correct=r,
            logprob=-lost - 2 * (not r),
        )
        for i, r in enumerate(right)
    )
    w_bit = 16 if method == "float" else bits
    result: dict[str, Any] = {"method": method, "w_bit": w_bit, "w_group": 64, "a_bit": acts}
    return Run(Path(f"{group}-{method}"), group, {**result, "bytes": 100 * w_bit}, samples)


def pattern(wrong: int, of: int = 100) -> list[bool]:
    return [i >= wrong for i in range(of)]


@pytest.fixture
def runs() -> list[Run]:
    return [
        make_run("planted", "float", pattern(2)),
        make_run("planted", "rtn", pattern(22)),
        make_run("planted", "awq", pattern(5)),
        make_run("plain", "float", pattern(2)),
        make_run("plain", "rtn", pattern(4)),
    ]


def test_rows_by_hand(runs: list[Run]) -> None:
    table = build_table(runs, "planted", "plain", resamples=200)
    rows = {row["method"]: row for row in table.rows}
    assert list(rows) == ["float", "oracle", "rtn", "awq"]
    assert rows["rtn"]["accuracy"] == pytest.approx(0.78)
    assert rows["rtn"]["loss"] == pytest.approx(0.20)
    assert rows["rtn"]["flips"] == pytest.approx(0.20)
    assert rows["rtn"]["excess"] == pytest.approx(0.40)
    assert rows["rtn"]["compression"] == pytest.approx(16 / 3)
    assert rows["awq"]["gain"] == pytest.approx(0.17)
    assert rows["awq"]["gap_closed"] == pytest.approx(17 / 18)
    assert rows["awq"]["gap_closed_logprob"] == pytest.approx(17 / 18)
    assert rows["awq"]["gap_closed_ci"][0] < 17 / 18 <= rows["awq"]["gap_closed_ci"][1]
    assert rows["awq"]["stderr"] == pytest.approx((0.95 * 0.05 / 100) ** 0.5, rel=0.25)
    assert "flips" not in rows["oracle"]
    assert "gap_closed" not in rows["rtn"]
    assert table.gaps[0]["gap"] == pytest.approx(0.18)
    assert table.gaps[0]["setting"] == "W3 g64"


def test_without_an_oracle_there_is_no_gap(runs: list[Run]) -> None:
    table = build_table(runs, "planted", "", resamples=50)
    assert [row["method"] for row in table.rows] == ["float", "rtn", "awq"]
    assert table.gaps == []
    assert "gap_closed" not in table.rows[2]


def test_without_float_nothing_is_compared_with_it(runs: list[Run]) -> None:
    table = build_table(runs[1:3], "planted", "", resamples=50)
    assert [row["method"] for row in table.rows] == ["rtn", "awq"]
    assert "excess" not in table.rows[0]
    assert table.rows[1]["gain"] == pytest.approx(0.17)


def test_a_gap_within_its_error_is_not_shared_out() -> None:
    runs = [
        make_run("planted", "float", pattern(2)),
        make_run("planted", "rtn", pattern(4)),
        make_run("planted", "awq", pattern(3)),
        make_run("plain", "rtn", pattern(4), lost=0.09),
    ]
    row = build_table(runs, "planted", "plain", resamples=200).rows[-1]
    assert row["gap_closed"] is None
    assert "gap_closed_ci" not in row
    assert row["gap_closed_logprob"] is not None


def test_settings_are_kept_apart_and_ordered(runs: list[Run]) -> None:
    more = [
        make_run("planted", "rtn", pattern(8), bits=4, acts=8),
        make_run("planted", "rtn", pattern(6), bits=4),
        make_run("planted", "zeta", pattern(6), bits=4),
        make_run("planted", "mbq", pattern(6), bits=4),
    ]
    rows = build_table([*runs, *more], "planted", "", resamples=50).rows
    assert [(row["setting"], row["method"]) for row in rows] == [
        ("float", "float"),
        ("W4 g64", "rtn"),
        ("W4 g64", "mbq"),
        ("W4 g64", "zeta"),
        ("W3 g64", "rtn"),
        ("W3 g64", "awq"),
        ("W4A8 g64", "rtn"),
    ]


def test_other_questions_are_refused(runs: list[Run]) -> None:
    runs[1] = make_run("planted", "rtn", pattern(2, of=99))
    with pytest.raises(DataError, match="other questions"):
        build_table(runs, "planted", "plain", resamples=50)


def test_labels() -> None:
    assert label(3, 0, 16) == "W3 rows"


def test_synthetic_results_say_what_they_were_made_to_say(results: Path) -> None:
    table = build_table(load_runs(results), "planted", "plain", resamples=300)
    rows = {(row["method"], row["setting"]): row for row in table.rows}
    assert len(rows) == 21
    assert rows["rtn", "W2 g32"]["accuracy"] < rows["awq", "W2 g32"]["accuracy"]
    for row in table.rows:
        low, high = row["accuracy_ci"]
        assert low <= row["accuracy"] <= high
        assert row["reload_exact"] is True
