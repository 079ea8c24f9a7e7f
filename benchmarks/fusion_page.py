"""The tables of docs/systems/calm.md, from bench_fusion.json and bench_composed.json.

python benchmarks/fusion_page.py      the tables anew, from the files
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import marked

__all__ = ["PAGE", "filled"]

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "systems" / "calm.md"
Rows = Sequence[Mapping[str, Any]]
_PEERS = ("torch eager", "torch.compile", "nn.MultiheadAttention")
_COMPOSED = ("composed", "composed, settled", "composed W8A8")


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *body)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _steps(rows: Rows) -> list[str]:
    head = ["Products", "Lk", "threads", "ours", *(f"{p}, ratio" for p in _PEERS)]
    body = []
    for row in sorted(rows, key=lambda r: (r["half"], r["keys"], r["threads"])):
        ms, ratio = row.get("median_ms"), row.get("ratio")
        if ms is None:
            continue
        told = [f"{ms[p]:.0f} ms, {ratio[p]:.2f}" if p in ms else "-" for p in _PEERS]
        kind = "bfloat16 autocast" if row["half"] else "float32"
        body.append([kind, str(row["keys"]), str(row["threads"]), f"{ms['ours']:.0f} ms", *told])
    return _table(head, body)


def _memory(rows: Rows) -> list[str]:
    head = ["Strategy", "pass", "Lk", "ours", "torch", "ratio"]
    body = []
    for row in sorted(rows, key=lambda r: (r["strategy"], r["keys"])):
        for what, found in row.get("memory_mib", {}).items():
            ours, other = found["ours"], found["torch sdpa"]
            told = [f"{ours:.1f} MiB", f"{other:.1f} MiB", f"{other / ours:.2f}"]
            body.append([f"`{row['strategy']}`", what, str(row["keys"]), *told])
    return _table(head, body)


def _composed(rows: Rows) -> list[str]:
    head = ["Dtype", "other tower", "threads", "anchor", "other", "composed", "settled", "W8A8"]
    body = []
    for row in sorted(rows, key=lambda r: (r["dtype"], r["size"], r["threads"])):
        ms, both, anchor = row["median_ms"], row["to_both_towers"], row["to_the_anchor"]
        cells = [row["dtype"], f"{row['size']} px", str(row["threads"])]
        cells += [f"{ms[n]:.0f} ms" for n in ("anchor", "augmenting")]
        for name in _COMPOSED:
            if name not in ms:
                cells.append("-")
            elif "W8A8" in name:
                cells.append(f"{ms[name]:.0f} ms, {anchor[name]:.2f} x the anchor")
            else:
                cells.append(f"{ms[name]:.0f} ms, {both[name]:.2f} x both")
        body.append(cells)
    return _table(head, body)


def filled(text: str, fusion: Rows, composed: Rows) -> str:
    """Return the page with its tables new."""
    parts = {
        "fusion-step": partial(_steps, fusion),
        "fusion-memory": partial(_memory, fusion),
        "composed": partial(_composed, composed),
    }
    return marked.filled(text, parts)


def main() -> int:
    """Write the tables anew."""
    found = (json.loads((HERE / f"bench_{n}.json").read_text()) for n in ("fusion", "composed"))
    PAGE.write_text(filled(PAGE.read_text(), *found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
