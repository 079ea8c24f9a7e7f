"""The frame that measures: statistics, schema, merging, bars. No test times anything."""

import doctest
import itertools
import json
import time

import pytest

from benchmarks import bars, cases, load, measure, operands, probes, results, stats, table
from benchmarks.axes import scale_search
from benchmarks.case import Case, Reading, Scaled

ROW = {
    "axis": "qgemm_decode",
    "case": "w4 4096x4096",
    "threads": 1,
    "ours": 1.0,
    "peers": {"a": 1.3, "b": 2.0},
    "limit": 0.9,
    "note": "",
}


def row(**changes):
    return ROW | changes


def test_good_rows_have_no_problems():
    assert results.problems([ROW, row(threads=2), row(case="w2", peers={})]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ours": None}, "ours is None"),
        ({"ours": float("nan")}, "ours is nan"),
        ({"limit": -1}, "limit is -1"),
        ({"peers": {"a": 0}}, "a is 0"),
        ({"peers": []}, "peers is None"),
        ({"threads": 0}, "threads is 0"),
        ({"note": None}, "note"),
        ({"extra": 1}, "keys"),
    ],
)
def test_bad_rows_are_named(change, words):
    (problem,) = results.problems([row(**change)])
    assert words in problem


def test_rows_are_unique():
    assert "second row" in results.problems([ROW, ROW])[0]
    assert results.problems({}) == ["expected a list of rows"]


def test_merge_replaces_keeps_and_orders():
    names = [("qgemm_decode", "w3 x"), ("qgemm_decode", "w4 4096x4096"), ("b", "c")]
    old = [row(axis="b", case="c"), ROW, row(case="gone")]
    new = [row(threads=2, ours=5.0), row(case="w3 x")]
    merged = results.merge(old, new, names)
    assert [(r["axis"], r["case"], r["threads"]) for r in merged] == [
        ("qgemm_decode", "w3 x", 1),
        ("qgemm_decode", "w4 4096x4096", 1),
        ("qgemm_decode", "w4 4096x4096", 2),
        ("b", "c", 1),
    ]
    assert results.merge(merged, [row(ours=7.0)], names)[1]["ours"] == 7.0


def test_files_are_lists_of_rows(tmp_path):
    path = tmp_path / "results.json"
    assert results.read(path) == []
    results.write(path, [ROW, row(threads=2)])
    assert results.read(path) == json.loads(path.read_text()) == [ROW, row(threads=2)]
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_bars_by_hand():
    verdict = bars.judge(ROW)
    assert (verdict.ratio, verdict.fraction, verdict.missed) == (1.3, 0.9, ())
    assert bars.judge(row(peers={"a": 1.1})).missed == ("1.10 x a, asked 1.2",)
    assert bars.judge(row(limit=0.5)).missed == ("0.50 of the limit, asked 0.85",)
    assert bars.judge(row(case="w8 x", peers={"a": 1.1})).missed == ()
    overhead = row(axis="call_overhead", case="raw binding", ours=0.002, peers={})
    assert bars.judge(overhead).missed == ("2 us, asked 1",)


def test_bars_for_named_peers():
    gemm = row(axis="gemm_f32", case="2048^3", peers={"OpenBLAS SkylakeX": 0.96, "torch.mm": 1.7})
    assert bars.judge(gemm).missed == ("1.70 x torch.mm, asked 1.8",)
    train = row(axis="fakequant_train", peers={"torch.compile": 1.4, "torch eager": 11.0})
    assert bars.judge(train).missed == ("11.00 x torch eager, asked 12",)


def test_widths_are_compared_with_four_bits():
    four = row(axis="qgemm_prefill", case="w4 M=64")
    three = row(axis="qgemm_prefill", case="w3 M=64", ours=1.2, peers={"a": 2.0}, limit=1.0)
    assert bars.judge(three, [four, three]).missed == ("1.20 x the time of w4, asked 1.1",)
    assert bars.judge(three | {"ours": 1.05}, [four]).missed == ()


def test_an_axis_without_bars_is_reported():
    verdict = bars.judge(row(axis="weights", ours=100.0))
    assert (verdict.asked, verdict.missed) == ("reported", ())
    assert bars.bar_of(row(axis="allocate", case="integers 1e7x7")) == bars.Bar("allocate")
    assert bars.bar_of(row(axis="fusion_train", case="fp16")) is None


@pytest.mark.parametrize("name", ["projection [64,1024]", "projection [8,4096]", "integers 1e5x7"])
def test_allocate_cases_have_their_own_bars(name):
    assert bars.bar_of(row(axis="allocate", case=name)).at_most is not None


def test_every_case_has_a_bar_and_a_limit_of_known_probes(monkeypatch):
    monkeypatch.setattr(scale_search, "judged", lambda loss: 1)  # else the search runs
    seen = set()
    for case in cases.CASES:
        assert (case.axis, case.name) not in seen
        seen.add((case.axis, case.name))
        assert bars.bar_of({"axis": case.axis, "case": case.name}) is not None, case.name
        for limit in (case.limit, *case.also.values()):
            assert set(probes.needed(limit)) <= set(probes.NAMES)
        assert set(case.default_malloc) <= set(case.peers)


def test_limits_in_milliseconds():
    rate = {"read": 1e10, "nt_copy": 0, "copy": 2e10, "fma_f32": 1e11, "vnni_int8": 1e12}
    p = probes.Probes(lambda name: rate.get(name, 0))
    assert p.read(1e7) == 1.0
    assert p.copy(2e7) == 1.0
    assert p.int8(2e9) == 2.0
    assert p.bf16(1e8) == p.fma(1e8) == 1.0
    assert p.vnni(1e9) == 1.0
    assert probes.Probes(lambda name: 0.0).read64(1) == float("inf")


@pytest.mark.parametrize("name", probes.NAMES)
def test_probes_run(name):
    assert probes.measure(name, 1, 1e-3) >= 0
    assert probes.measure(name, 2, 1e-3) >= 0


def test_a_case_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(load.Watch, "clean", lambda self: True)

    def absent(threads):
        raise ImportError("no module named absent")

    case = Case(
        "axis",
        "name",
        ours=lambda threads: lambda: time.sleep(1e-4),
        peers={
            "ring": lambda threads: Scaled(lambda: time.sleep(1e-3), 0.5),
            "reading": lambda threads: Reading(itertools.count(7).__next__, 3),
            "absent": absent,
        },
        limit=lambda p: 5.0,
        also={"twice": lambda p: 10.0},
        note="by hand",
    )
    found = measure.measure(case, 1, measure.Pace(3, 1e-4, 1e-4))
    assert found["peers"]["reading"] == 8.0
    assert set(found["peers"]) == {"ring", "reading"}
    assert found["limit"] == 5.0
    assert found["note"].startswith("by hand; ")
    assert "of twice; no absent: ImportError no module named absent; clean 9/9" in found["note"]
    found.pop("probes")
    assert results.problems([found]) == []
    only = measure.measure(case, 1, measure.Pace(3, 1e-4, 1e-4), ("ring",))
    assert (only["ours"], set(only["peers"])) == (None, {"ring"})


def test_disturbed_samples_are_dropped(monkeypatch):
    flags = itertools.cycle([True, False])
    monkeypatch.setattr(load.Watch, "clean", lambda self: next(flags))
    case = Case("a", "n", lambda threads: lambda: None, {}, limit=lambda p: 1.0)
    found = measure.measure(case, 1, measure.Pace(3, 1e-5, 1e-5))
    assert found["note"] == "clean 2/3"


def test_the_watch_reads_the_clock_of_the_machine():
    assert isinstance(load.Watch().clean(), bool)


def test_rings_go_round():
    seen = []
    call = operands.ring([lambda n=n: seen.append(n) for n in range(3)])
    for _ in range(4):
        call()
    assert seen == [0, 1, 2, 0]
    assert operands.ring_length(100 << 20) == 3


@pytest.mark.parametrize("module", [probes, results, stats, table], ids=lambda m: m.__name__)
def test_examples_in_the_frame(module):
    assert doctest.testmod(module).failed == 0
