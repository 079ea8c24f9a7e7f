"""The tables of docs/cm-ibq-results.md, from results.json.

python benchmarks/cm_ibq/page.py      the tables anew, from the file
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
from benchmarks.cm_ibq.pictures import title

__all__ = ["PAGE", "filled", "write_page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cm-ibq-results.md"
Json = Mapping[str, Any]


def _about(results: Json) -> list[str]:
    base = results["float"]
    seeds = {p["seeds"] for some in results["rows"].values() for p in some if p["seconds"]}
    told = "to".join(f" {n} " for n in sorted({min(seeds), max(seeds)})).strip() if seeds else "no"
    return [
        f"{results['questions']:,} questions about {results['pictures']:,} pictures of the"
        f" {results['split']} scans; the float model answers {100 * base['accuracy']:.1f} % of them"
        f" (log-loss {base['nll']:.3f} nats). Trainings per point: {told}."
    ]


def _span(found: Json, scale: float = 1.0, digits: int = 1, none: str = "-") -> str:
    """Return a value with its interval."""
    if found["value"] is None:
        return none
    if found.get("bound"):
        return f"at most {scale * found['value']:.{digits}f}"
    text = f"{scale * found['value']:.{digits}f}"
    if found["low"] is None:
        return text
    return f"{text} ({scale * found['low']:.{digits}f} to {scale * found['high']:.{digits}f})"


def _below(results: Json) -> list[str]:
    lines = ["| sent | bytes, 95 % interval | each training | best point: bytes, accuracy |"]
    lines.append("|---|---|---|---|")
    for name, found in results["below"].items():
        each = ", ".join("-" if b is None else f"{b:.1f}" for b in found["by_seed"])
        best = max(results["rows"][name], key=lambda p: p["accuracy"])
        lines.append(
            f"| {title(name)} | {_span(found, none='not reached')} | {each}"
            f" | {best['bytes']:.1f}, {100 * best['accuracy']:.1f} % |"
        )
    return lines


def _against(results: Json) -> list[str]:
    lines = ["| row | against | bytes one point below float, % | BD-rate, % |"]
    lines.append("|---|---|---|---|")
    for found in results["against"]:
        lines.append(
            f"| {title(found['row'])} | {title(found['other'])} | {_span(found['saving'], 100)}"
            f" | {_span(found['bd_rate'], 100)} |"
        )
    return lines


def _points(results: Json) -> list[str]:
    lines = ["| sent | channels, bits, nats per bit | bytes | accuracy, % | against float, points "]
    lines[-1] += "| excess loss, nats | trainings |"
    lines.append("|---|---|---|---|---|---|---|")
    for name, some in results["rows"].items():
        for p in some:
            bare = "" if p["bare"] is None else f" ({p['bare']:.0f} without headers)"
            told = ", ".join(f"{x:g}" for x in p["point"])
            lines.append(
                f"| {title(name)} | {told} | {p['bytes']:.1f}{bare} | {100 * p['accuracy']:.1f}"
                f" | {100 * p['gain']:.1f} ± {100 * p['gain_stderr']:.1f}"
                f" | {p['excess']:.3f} ± {p['excess_stderr']:.3f} | {p['seeds']} |"
            )
    return lines


def _gain(results: Json) -> list[str]:
    told = results["gain"]
    lines = ["| flat bits of the layer that is looked at | predicted saving, bits per element |"]
    lines.append("|---|---|")
    lines += [f"| {bits:g} | {value:.2f} |" for bits, value in told["predicted"]]
    if told["measured"] is None:
        return [
            *lines,
            "",
            "Measured: not to be told, a curve does not reach one point below float.",
        ]
    return [
        *lines,
        "",
        f"Measured one point below float, with codes of fixed length: {told['measured']:.2f} bits"
        " per element.",
    ]


def _left_out(results: Json) -> list[str]:
    lines = ["| kind not trained | float, % | sent | bytes | accuracy of that kind, % "]
    lines[-1] += "| loses more than LSQ at these bytes, points | trainings |"
    lines.append("|---|---|---|---|---|---|---|")
    for told in results["left_out"]:
        for found in told["rows"]:
            more = "-" if found["more"] is None else _span(found["more"], 100)
            lines.append(
                f"| {told['kind']} | {100 * told['float']:.1f} | {title(found['row'])}"
                f" | {found['bytes']:.1f} | {100 * found['accuracy']:.1f} | {more}"
                f" | {found['seeds']} |"
            )
    return lines


PARTS = {
    "about": _about,
    "below": _below,
    "against": _against,
    "gain": _gain,
    "left_out": _left_out,
    "points": _points,
}


def filled(page: str, results: Json) -> str:
    """Return a page with the tables between its markers; without results it stays as it is."""
    known = {n: partial(part, results) for n, part in PARTS.items() if results.get(n, True)}
    return marked.filled(page, known) if results else page


def write_page(results: Json) -> None:
    """Write the tables into the page."""
    PAGE.write_text(filled(PAGE.read_text(), results))


if __name__ == "__main__":
    write_page(json.loads((Path(__file__).with_name("results.json")).read_text()))
