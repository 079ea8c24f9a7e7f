"""Tables and pictures, from rows made by hand."""

import pytest

from benchmarks import roofline, table
from benchmarks.case import Case

RATES = {name: {"1": 10.0, "2": 20.0} for name in ("read", "nt_copy", "copy")}
RATES |= {"fma_f32": {"1": 200.0, "2": 400.0}, "vnni_int8": {"1": 900.0, "2": 1800.0}}


def row(axis="minmax_channel", case="4096x4096", threads=1, ours=2.0, note="clean 9/9", **peers):
    peers = peers or {"torch": 40.0, "slow": 90.0}
    known = {"axis": axis, "case": case, "threads": threads, "ours": ours}
    return known | {"peers": peers, "limit": 1.8, "note": note}


def test_summary_by_hand():
    lines = table.summary([row(), row(threads=2, ours=3.0), row("histogram", "x")])
    assert (
        lines[2]
        == "| [`minmax_channel`](#minmax_channel) | 13.33 to 20.00 x | 0.60 to 0.90 | 1 of 2 |"
    )
    assert lines[3] == "| [`histogram`](#histogram) | 20.00 x | 0.90 | no bar |"


def test_details_by_hand():
    rows = [row(note="fp32; clean 9/9"), row(threads=2, note="fp32; no ORT; clean 9/9")]
    lines = table.details(rows)
    first = "| 4096x4096 | 1 | 2 ms | 40 ms (torch) | 20.00 | 1.8 ms | 0.90 | 12 x, 0.80 | met |"
    assert first in lines
    assert "- fp32" in lines
    assert "- 4096x4096, 2 t: no ORT" in lines


@pytest.mark.parametrize(
    ("axis", "value", "text"),
    [
        ("gemm_f32", 0.0123, "12.3 us"),
        ("gemm_f32", 1.234, "1.23 ms"),
        ("gemm_f32", 12345.0, "12.3 s"),
        ("fusion_memory", 3 << 19, "1.5 MiB"),
    ],
)
def test_figures_read_well(axis, value, text):
    assert table._figure({"axis": axis}, value) == text


def test_markers_keep_the_rest():
    page = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n"
    new = table.filled(page, {"x": lambda: ["new"], "absent": lambda: ["never"]})
    assert new == "a\n<!-- x:begin -->\n\nnew\n\n<!-- x:end -->\nb\n"
    assert table.filled(new, {"x": lambda: ["new"]}) == new


def test_the_headline_counts_only_what_is_there():
    (line,) = table.headline([row()], {"cores": 2, "cpu": "Intel(R) Xeon(R) Processor (family 6)"})
    assert "channel ranges 20 x." in line
    assert "2 cores of an Intel Xeon Processor:" in line


def test_a_family_is_drawn(tmp_path, monkeypatch):
    def none(threads):
        raise AssertionError("not measured")

    case = Case("fakequant_forward", "x", none, {}, lambda p: 1.0, flops=4e6, moved=8e6)
    monkeypatch.setattr(roofline, "CASES", [case, case])
    rows = [row("fakequant_forward", "x", t, 0.5 / t) for t in (1, 2)]
    (point,) = roofline.points(rows, ("fakequant_forward",), 1, RATES)
    assert (point.intensity, point.ours, point.peer) == (0.5, 8.0, 0.1)
    assert roofline.draw("fakequant", rows, RATES, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert not roofline.draw("search", rows, RATES, tmp_path / "b.png")
