"""The page of measurements says what the files of results say."""

from __future__ import annotations

import json

from benchmarks import results, roofline, table
from benchmarks.bars import bar_of
from tests.docs.pages import ROOT

AGAIN = "`make bench-docs` writes it anew"


def test_results_follow_the_schema() -> None:
    rows = results.read()
    assert results.problems(rows) == []
    assert all(bar_of(row) for row in rows)


def test_pages_show_the_results() -> None:
    stale = [p.name for p, text in table.pages().items() if p.read_text() != text]
    assert stale == [], AGAIN


def test_the_page_names_the_machine() -> None:
    text, machine = table.PAGE.read_text(), json.loads(results.MACHINE.read_text())
    for known in (machine["cpu"], machine["date"], *machine["levels"]):
        assert known in text


def test_every_family_with_results_has_its_picture() -> None:
    rows, text = results.read(), table.PAGE.read_text()
    rates = json.loads(results.MACHINE.read_text())["rates"]
    for name, family in roofline.FAMILIES.items():
        picture = f"images/roofline-{name}.png"
        shown = any(roofline.points(rows, family.axes, 1, rates))
        assert (picture in text) == shown
        assert not shown or (ROOT / "docs" / picture).stat().st_size < 200_000
