"""Write what was measured into `docs/performance.md` and the README, between their markers.

    python benchmarks/table.py [--check]

With --check nothing is written; exit status 1 if the pages say something else than the results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import results
from benchmarks.bars import bar_of, judge, label
from benchmarks.marked import filled
from benchmarks.roofline import FAMILIES, points

__all__ = ["PAGE", "filled", "main", "pages"]

ROOT = Path(__file__).resolve().parents[1]
PAGE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"
BYTES = "fusion_memory"
HEADLINES = {
    "qgemm_decode": "one token through a packed layer",
    "qgemm_prefill": "many tokens through a 4-bit layer",
    "gemm_f32": "float32 matrix products",
    "fakequant_forward": "fake quantisation",
    "minmax_channel": "channel ranges",
}
Rows = list[dict[str, Any]]


def _figure(row: Mapping[str, Any], value: float) -> str:
    """Return a time in the unit that reads best, or a size."""
    if row["axis"] == BYTES:
        return f"{value / 2**20:.1f} MiB"
    if value < 0.1:
        return f"{1e3 * value:.3g} us"
    return f"{value / 1e3:.3g} s" if value >= 1e4 else f"{value:.3g} ms"


def _best(row: Mapping[str, Any]) -> str:
    peers = row["peers"]
    if not peers:
        return "-"
    name = min(peers, key=peers.__getitem__)
    return f"{_figure(row, peers[name])} ({name})"


def _axes(rows: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row["axis"], []).append(row)
    return found


def _span(values: Iterable[float], form: str) -> str:
    low, high = min(values := list(values)), max(values)
    return (
        form.format(low)
        if form.format(low) == form.format(high)
        else (f"{form.format(low)} to {form.format(high)}")
    )


def summary(rows: Rows) -> list[str]:
    """Return a line per axis: spans of its ratios and fractions, and how many rows meet the bar."""
    lines = [
        "| axis | ours against the best peer | share of the limit | rows that meet their bar |",
        "|---|---|---|---|",
    ]
    for axis, some in _axes(rows).items():
        verdicts = [judge(row, rows) for row in some]
        ratios = [v.ratio for v, row in zip(verdicts, some, strict=True) if row["peers"]]
        barred = [v for v in verdicts if v.asked != "reported"]
        met = f"{sum(not v.missed for v in barred)} of {len(barred)}" if barred else "no bar"
        ratio = _span(ratios, "{:.2f}") + " x" if ratios else "-"
        fraction = _span([v.fraction for v in verdicts], "{:.2f}")
        lines.append(f"| [`{axis}`](#{axis}) | {ratio} | {fraction} | {met} |")
    return lines


def details(rows: Rows) -> list[str]:
    """Return a section per axis with every row beside its bar."""
    lines: list[str] = []
    for axis, some in _axes(rows).items():
        lines += [f"### {axis}", ""]
        lines += ["| case | threads | ours | best peer | ratio | limit | share | bar | |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for row in some:
            verdict, bar = judge(row, rows), bar_of(row)
            asked = label(bar) if bar else "-"
            state = "" if asked == "reported" else "missed" if verdict.missed else "met"
            state += ", beyond the limit" if verdict.beyond else ""
            ratio = f"{verdict.ratio:.2f}" if row["peers"] else "-"
            lines.append(
                f"| {row['case']} | {row['threads']} | {_figure(row, row['ours'])} | {_best(row)} "
                f"| {ratio} | {_figure(row, row['limit'])} | {verdict.fraction:.2f} | {asked} "
                f"| {state} |"
            )
        lines += ["", *(f"- {note}" for note in _notes(some)), ""]
    return lines[:-1]


def _notes(rows: Rows) -> list[str]:
    """Return the notes of an axis, each once, with the cases it is about unless that is all."""
    about: dict[str, list[str]] = {}
    for row in rows:
        for part in row["note"].split("; "):
            if part and not part.startswith("clean "):
                about.setdefault(part, []).append(f"{row['case']}, {row['threads']} t")
    return [
        part if len(cases) == len(rows) else f"{', '.join(dict.fromkeys(cases))}: {part}"
        for part, cases in about.items()
    ]


def machine(data: Mapping[str, Any]) -> list[str]:
    """Return the machine as a list, and its measured limits as a table."""
    caches = ", ".join(f"{name} {size}" for name, size in data["caches"].items())
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    where = " of a virtual machine" if data["hypervisor"] else ""
    unset = f" ({', '.join(data['unset'])} were set and taken out)" if data["unset"] else ""
    lines = [
        f"- {data['cores']} cores{where}: {data['cpu']}, nominally {data['nominal_mhz']} MHz",
        f"- {caches} as one core sees them; {data['memory']} of memory",
        f"- levels of cmibq: {' '.join(data['levels'])}; measured at `{data['level']}`",
        f"- Linux {data['kernel']}; {versions}{unset}; {data['date']}",
        "",
        "| limit | 1 thread | 2 threads |",
        "|---|---|---|",
    ]
    for name, text in LIMITS.items():
        rates = data["rates"].get(name, {})
        if any(rates.values()):
            unit = "GB/s" if name in ("read", "read64", "copy", "nt_copy") else "G/s"
            shown = (f"{rates[t]:.4g} {unit}" if t in rates else "-" for t in ("1", "2"))
            lines.append(f"| {text} | {' | '.join(shown)} |")
    return lines


LIMITS = {
    "fma_f32": "float32 multiply-add, vector unit",
    "vnni_int8": "int8 multiply-add, vector unit (VNNI)",
    "amx_int8": "int8 multiply-add, tile unit (AMX)",
    "vdpbf16ps": "bfloat16 multiply-add, vector unit",
    "amx_bf16": "bfloat16 multiply-add, tile unit (AMX)",
    "read": "memory read, 256 MiB",
    "read64": "memory read, 64 MiB (partly from L3)",
    "copy": "copy with plain stores, 64 MiB, read + write",
    "nt_copy": "copy with streaming stores, 64 MiB, read + write",
}


def headline(rows: Rows, data: Mapping[str, Any]) -> list[str]:
    """Return the README's line: per headline axis the span of its ratios to the best peer."""
    axes, parts = _axes(rows), []
    for axis, words in HEADLINES.items():
        verdicts = [judge(row, rows) for row in axes.get(axis, []) if row["peers"]]
        ratios = [v.ratio for v in verdicts if v.asked != "reported"]
        if ratios:
            parts.append(f"{words} {_span(ratios, '{:.2g}')} x")
    where = data["cpu"].partition(" (")[0].replace("(R)", "")
    text = (
        f"Speed against the fastest of torch, ONNX Runtime, OpenVINO and NumPy on {data['cores']} "
        f"cores of an {where}: {'; '.join(parts)}. [Performance](docs/performance.md) has every "
        "case, the limits of the machine and how to measure yours (`make bench`)."
    )
    return [text]


def rooflines(rows: Rows, rates: Mapping[str, Any]) -> list[str]:
    """Return a heading and a picture per kernel family that has points to show."""
    lines: list[str] = []
    for name, family in FAMILIES.items():
        if any(points(rows, family.axes, 1, rates)):
            picture = f"![Roofline: {family.title.lower()}](images/roofline-{name}.png)"
            lines += [f"### {family.title}", "", picture, ""]
    return lines[:-1]


def pages() -> dict[Path, str]:
    """Return every page that shows results, as it should read."""
    rows, data = results.read(), json.loads(results.MACHINE.read_text())
    parts: dict[str, Callable[[], list[str]]] = {
        "machine": lambda: machine(data),
        "summary": lambda: summary(rows),
        "rooflines": lambda: rooflines(rows, data["rates"]),
        "results": lambda: details(rows),
        "headline": lambda: headline(rows, data),
    }
    return {path: filled(path.read_text(), parts) for path in (PAGE, README)}


def main(arguments: list[str]) -> int:
    """Bring the pages up to date, or check that they are."""
    stale = [path for path, text in pages().items() if path.read_text() != text]
    if "--check" not in arguments:
        for path, text in pages().items():
            path.write_text(text)
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what results.json says; run make bench-docs")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
