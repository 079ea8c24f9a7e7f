"""The tables of docs/calm-results.md, from results.json.

python benchmarks/calm/page.py      the tables anew, from the file
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks import marked
from benchmarks.calm.tasks import ROWS
from cmibq.demo.tiles import KINDS

__all__ = ["PAGE", "filled", "write_page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "calm-results.md"
Json = Mapping[str, Any]
_OURS = {"calm": "gated attention", "placed": "placed attention", "add": "simple_add"}
_YES = {True: "yes", False: "**no**"}


def _about(results: Json) -> list[str]:
    plan = results["plan"]
    return [
        f"{results['questions']:,} questions about {results['pictures']:,} pictures of the"
        f" {results['split']} scans; {plan['steps']} steps of {plan['batch']} pictures, drawn from"
        f" {plan['pictures']:,} training pictures."
    ]


def _error(found: Json) -> str:
    return f"{found['value']:.1f} ± {found['stderr']:.1f}"


def _table(rows: Json) -> list[str]:
    lines = ["| row | right, % | " + " | ".join(KINDS) + " | loss, nats | parameters | trainings |"]
    lines.append("|---" * (len(KINDS) + 5) + "|")
    for row, told in rows.items():
        kinds = " | ".join(f"{told['by_kind'][k]:.1f}" for k in KINDS)
        lines.append(
            f"| {ROWS[row].title} | {_error(told['accuracy'])} | {kinds} | {told['loss']:.3f}"
            f" | {told['parameters']:,} | {told['trainings']} |"
        )
    return lines


def _rows(results: Json) -> list[str]:
    return _table(results["rows"])


def _ablation(results: Json) -> list[str]:
    return _table(results["ablation"])


def _bars(results: Json) -> list[str]:
    lines = [
        "| composed | against | all questions | more than two errors better | anchor's own kinds"
    ]
    lines[-1] += " | the other tower's | both needed |"
    lines.append("|---|---|---|---|---|---|---|")
    for bar in results["bars"]:
        gaps = [_error(bar["gap"][name]) for name in ("anchor's", "other's", "both")]
        lines.append(
            f"| {_OURS[bar['ours']]} | {ROWS[bar['row']].title} | {_error(bar['gap']['all'])}"
            f" | {_YES[bar['met']['all']]} | {' | '.join(gaps)} |"
        )
    return lines


def _twin(results: Json) -> list[str]:
    told = results["twin"]
    return [
        f"Against the anchor alone, on its own kinds of questions: {_error(told['gap'])} points"
        f" (at least -{told['margin']} wanted: {'met' if told['met'] else '**not met**'})."
    ]


def _step_zero(results: Json) -> list[str]:
    lines = ["| fusions that nobody trained | anchor's kinds, right, % | loss, nats |"]
    lines.append("|---|---|---|")
    for told in results["facts"]["step_zero"]:
        title = ROWS[told["row"]].title
        lines.append(f"| {title} | {told['accuracy']:.1f} | {told['loss']:.3f} |")
    return lines


def _facts(results: Json) -> list[str]:
    found, lines = results["facts"]["share"], []
    lines.append(
        f"- Trained share: {found['fusions']:,} parameters of fusions beside {found['towers']:,} of"
        f" both towers, {100 * found['share']:.2f} % (12 layers, n = 2)."
    )
    if small := results["facts"]["quantised"]:
        verdict = "met" if small["met"] else "**not met**"
        lines.append(
            f"- Composed tower in W8A8 against float, right answers: {small['gap']:.2f} ±"
            f" {small['stderr']:.2f} points (at least -0.3 wanted: {verdict})."
        )
    if told := results.get("times"):
        for size, some in told.items():
            added = some["composed"] - some["anchor"]
            lines.append(
                f"- One thread, batch of {size}, ms per picture: anchor {some['anchor']:.2f},"
                f" augmenting {some['augmenting']:.2f}, composed {some['composed']:.2f}"
                f" ({added:+.2f} on the anchor), composed W8A8 {some['int8']:.2f}."
            )
    return lines


PARTS = {
    "about": _about,
    "rows": _rows,
    "bars": _bars,
    "twin": _twin,
    "ablation": _ablation,
    "step_zero": _step_zero,
    "facts": _facts,
}


def filled(page: str, results: Json) -> str:
    """Return a page with the tables between its markers; without results it stays as it is."""
    needs = {"about": "rows", "step_zero": "facts"}
    known = {
        name: partial(part, results)
        for name, part in PARTS.items()
        if results.get(needs.get(name, name))
    }
    return marked.filled(page, known) if results else page


def write_page(results: Json) -> None:
    """Write the tables into the page."""
    PAGE.write_text(filled(PAGE.read_text(), results))


if __name__ == "__main__":
    write_page(json.loads((Path(__file__).with_name("results.json")).read_text()))
