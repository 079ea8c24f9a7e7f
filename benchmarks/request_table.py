"""The results of `benchmarks/request.py`, and the table in docs/howto/generate-fast.md.

python benchmarks/request_table.py      the table anew, from the file
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    import argparse

    from benchmarks.request import Candidate
    from benchmarks.request_models import Shape

__all__ = ["PAGE", "RESULTS", "merge", "page", "row", "table", "write_page"]

RESULTS = Path(__file__).with_name("request.json")
PAGE = Path(__file__).parents[1] / "docs/howto/generate-fast.md"
_BEGIN, _END = "<!-- request:begin -->\n", "<!-- request:end -->\n"
BITS = {"torch_bf16": (16.0, 16.0)}
PACKED = (4.125, 8.125)
"""Bits per weight of the decoder layers and of the head, scales included."""


def row(
    name: str, shape: Shape, c: Candidate, reads: list[float], options: argparse.Namespace
) -> dict[str, Any]:
    """Return what was measured of a candidate, as JSON values."""
    read = statistics.median(reads)
    moved = shape.token_bytes(*BITS.get(c.options["kind"], PACKED))
    layers = c.options.get("layers")
    return {
        "shape": name,
        "candidate": c.name,
        "threads": options.threads,
        "layers": layers or shape.layers,
        "image": c.options["image"] and "text only" not in c.name,
        "first_token_s": _digits(statistics.median(c.first)),
        "first_token_best_s": _digits(min(c.first)),
        "tokens_per_s": _digits(statistics.median(c.rates)),
        "tokens_per_s_best": _digits(max(c.rates)),
        "read_gb_s": _digits(read / 1e9),
        "limit_tokens_per_s": None if layers else _digits(read / moved),
        "peak_bytes": c.peak,
        "empty_bytes": c.ready["empty"],
        "load_s": _digits(c.ready["load"]),
        "clean": f"{c.clean}/{len(c.first)}",
    }


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def merge(path: Path, made: dict[str, Any]) -> None:
    """Put a row into the file, in the place of the older one."""
    keys = ("shape", "candidate", "threads")
    kept = json.loads(path.read_text()) if path.exists() else []
    kept = [r for r in kept if any(r[k] != made[k] for k in keys)] + [made]
    kept.sort(key=lambda r: tuple(str(r[k]) for k in keys))
    path.write_text(json.dumps(kept, indent=1) + "\n")


def _extrapolated(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace the models with few layers by a line through them, at the whole number of layers."""
    from benchmarks.request_models import SHAPES

    found = [r for r in rows if r["layers"] == SHAPES[r["shape"]].layers]
    few = sorted((r for r in rows if r not in found), key=lambda r: int(r["layers"]))
    if len(few) < 2:
        return found
    a, b = few[0], few[-1]
    reach = (SHAPES[a["shape"]].layers - a["layers"]) / (b["layers"] - a["layers"])

    def line(x: float, y: float) -> float:
        return x + reach * (y - x)

    first = line(a["first_token_s"], b["first_token_s"])
    each = line(1 / a["tokens_per_s"], 1 / b["tokens_per_s"])
    memory = line(a["peak_bytes"], b["peak_bytes"])
    name = f"torch bfloat16 (line through {a['layers']} and {b['layers']} layers)"
    made = {"first_token_s": first, "tokens_per_s": 1 / each, "peak_bytes": memory}
    return [*found, b | made | {"candidate": name}]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of one shape and thread count."""
    lines = [
        "| | first token | tokens/s | of the limit | peak memory | above an empty process |",
        "|---|---|---|---|---|---|",
    ]
    fastest = max(r["read_gb_s"] for r in rows)  # other processes can only have slowed a reading
    for r in _extrapolated(rows):
        limit = r["limit_tokens_per_s"]
        share = f"{r['tokens_per_s'] / limit * r['read_gb_s'] / fastest:.2f}" if limit else ""
        peak, more = r["peak_bytes"] / 1e9, (r["peak_bytes"] - r["empty_bytes"]) / 1e9
        lines.append(
            f"| {r['candidate']} | {r['first_token_s']:.2f} s | {r['tokens_per_s']:.1f} | {share} "
            f"| {peak:.2f} GB | {more:.2f} GB |"
        )
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page with the tables of the file of results."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    parts = []
    for shape in dict.fromkeys(r["shape"] for r in rows if r["shape"] != "tiny"):
        for threads in sorted({r["threads"] for r in rows}):
            some = [r for r in rows if r["shape"] == shape and r["threads"] == threads]
            if some:
                parts.append(f"**{shape.upper()} shape, {threads} threads**\n\n{table(some)}")
    head, _, rest = PAGE.read_text().partition(_BEGIN)
    return head + _BEGIN + "\n" + "\n".join(parts) + "\n" + _END + rest.partition(_END)[2]


def write_page() -> None:
    """Write the tables into the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    write_page()
