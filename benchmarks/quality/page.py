"""The tables of docs/quality.md, from results.json.

python benchmarks/quality/page.py      the tables anew, from the file
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
from benchmarks.quality.pictures import NAMES

__all__ = ["PAGE", "filled", "write_page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quality.md"
Json = Mapping[str, Any]


def _pm(figure: Json, scale: float = 1.0, digits: int = 3) -> str:
    return f"{scale * figure['value']:.{digits}f} ± {scale * figure['stderr']:.{digits}f}"


def _table(results: Json) -> list[str]:
    """Return a table per setting."""
    lines: list[str] = []
    for name, told in results["table"].items():
        if not told["rows"]:
            continue
        planted = f", outliers up to {told['outliers']:g}" if told["outliers"] > 1 else ""
        reach = "" if told["rtn_in_range"] else " (RTN is outside 0.05 to 0.5: not to be judged)"
        lines += [f"**{name}, groups of {told['group']}{planted}**{reach}", ""]
        lines += ["| row | excess loss, nats | against RTN | answers that flip, % | file, bytes "]
        lines[-1] += "| packed, bytes |"
        lines.append("|---|---|---|---|---|---|")
        for row in (r for r in NAMES if r in told["rows"]):
            found = told["rows"][row]
            title = NAMES[row] + (f" {found['peer']}" if found["peer"] else "")
            lines.append(
                f"| {title} | {_pm(found['excess'])} | {_pm(found['over_rtn'])} "
                f"| {_pm(found['flips'], 100, 1)} | {found['bytes']:,} "
                f"| {found['packed_bytes']:,} |"
            )
        lines.append("")
    return lines[:-1]


def _spread(results: Json) -> dict[tuple[str, str], float]:
    return {(d["setting"], d["row"]): d["spread"] for d in results.get("draws", [])}


def _bars(results: Json) -> list[str]:
    lines = ["| width | row of ours | best of the others | difference, nats | asked | |"]
    lines.append("|---|---|---|---|---|---|")
    for name, told in results["table"].items():
        for found in told["bars"] if told["rtn_in_range"] else ():
            asked = "better by 2 s.e." if found["margin"] > 0 else "at most 1 s.e. worse"
            lines.append(
                f"| {name} | {NAMES[found['row']]} | {NAMES[found['best']]} | {_pm(found['gap'])} "
                f"| {asked} | {'met' if found['met'] else 'missed'} |"
            )
    return lines


def _draws(results: Json) -> list[str]:
    rows = list(dict.fromkeys(d["row"] for d in results["draws"]))
    spread = _spread(results)
    lines = [f"| width | {' | '.join(NAMES[r] for r in rows)} |", "|---" * (len(rows) + 1) + "|"]
    for name in results["table"]:
        values = [spread.get((name, row)) for row in rows]
        cells = ["-" if v is None else f"{v:.3f}" for v in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _text(results: Json) -> list[str]:
    lines = ["| width | row | with pictures | without | difference |", "|---|---|---|---|---|"]
    for found in results["text"]:
        lines.append(
            f"| {found['setting']} | {NAMES[found['row']]} | {_pm(found['image'])} "
            f"| {_pm(found['text'])} | {_pm(found['difference'])} |"
        )
    return lines


def _study(results: Json) -> list[str]:
    lines = ["| image tokens times | mean log r | excess of RTN | compared | gain, nats |"]
    lines.append("|---|---|---|---|---|")
    for found in results["study"]:
        without, with_ = (NAMES[row] for row in found["rows"])
        ratio = sum(found["log_ratio"]) / len(found["log_ratio"])
        compared = f"{with_} over {without} | {_pm(found['gain'])}"
        lines.append(
            f"| {found['image_scale']:g} | {ratio:.2f} | {found['rtn']:.3f} | {compared} |"
        )
    return lines


def _about(results: Json) -> list[str]:
    accuracy = results["float"]
    if not accuracy:
        return []
    spans = f"{100 * min(accuracy):.1f} to {100 * max(accuracy):.1f} %"
    return [
        f"{results['questions']:,} test questions, training seeds "
        f"{', '.join(map(str, results['seeds']))}; the float models answer {spans} of them."
    ]


PARTS = {
    "about": _about,
    "table": _table,
    "bars": _bars,
    "draws": _draws,
    "text": _text,
    "study": _study,
}


def filled(page: str, results: Json) -> str:
    """Return a page with the tables between its markers; without results they stay as they are."""
    optional = ("draws", "text", "study")
    known = {
        name: partial(part, results)
        for name, part in PARTS.items()
        if name not in optional or results.get(name)
    }
    return marked.filled(page, known)


def write_page(results: Json) -> None:
    """Write the tables into the page."""
    PAGE.write_text(filled(PAGE.read_text(), results))


if __name__ == "__main__":
    write_page(json.loads((Path(__file__).with_name("results.json")).read_text()))
