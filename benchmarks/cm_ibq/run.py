"""The tables of docs/cm-ibq-results.md: every way of sending image tokens, at its bytes.

    python benchmarks/cm_ibq/run.py [--rows ours,klt] [--seeds 0] [--split test] [--quick]

Coders and cells lie in .work/cm_ibq, or where $CMIBQ_RATES says. A finished cell is never made
again, so a run that was stopped goes on where it was. At the end results.json, the tables and the
picture of the page are written from all cells there are (not with --quick or another split than
test: then the figures are printed).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.cm_ibq import tasks
from benchmarks.cm_ibq.cells import made
from benchmarks.cm_ibq.factorized import installed
from benchmarks.cm_ibq.fit import Plan
from benchmarks.cm_ibq.tasks import Cell
from cmibq.fileio import write_json

__all__ = ["RESULTS", "main"]

RESULTS = Path(__file__).with_name("results.json")
_QUICK = Plan(steps=30, pictures=200)


def _options() -> Any:
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("--rows", default=",".join(tasks.ROWS), help="empty: only write")
    parser.add_argument("--seeds", default=",".join(map(str, tasks.SEEDS)))
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--left-out", default="", help="kinds to leave out, or all")
    parser.add_argument("--quick", action="store_true", help="30 steps, for trying the code")
    return parser.parse_args()


def _wanted(options: Any) -> list[Cell]:
    rows = [row for row in options.rows.split(",") if row]
    if "factorized" in rows and not installed():
        print("factorized: left out, `pip install --no-deps compressai` brings it", flush=True)
        rows.remove("factorized")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    plan = _QUICK if options.quick else Plan()
    cells = tasks.image_cells(split=options.split)
    cells += tasks.cells_of(rows, seeds=seeds, split=options.split, plan=plan)
    kinds = tasks.LEFT_OUT if options.left_out == "all" else options.left_out.split(",")
    for kind in filter(None, kinds):
        split = options.split
        cells += tasks.left_out_cells(kind, seeds=seeds, split=split, plan=plan, rows=rows)
    return cells


def _print(cell: Cell, found: dict[str, Any]) -> None:
    sizes, count = found["bytes"], len(found["right"])
    size, right, loss = sum(sizes) / len(sizes), sum(found["right"]), sum(found["losses"])
    fixed = f" nominal {found['nominal'] / 8:.1f}" if "nominal" in found else ""
    told = f"accuracy {right / count:.4f} loss {loss / count:.4f} bytes {size:.2f}{fixed}"
    print(f"{cell.name}: {told}", flush=True)


def main() -> int:
    """Make what is asked for and write the results."""
    import torch

    options = _options()
    torch.set_num_threads(1)  # so small that a second thread costs more than it brings
    for cell in _wanted(options):
        _print(cell, made(cell))
    if options.split == "test" and not options.quick:
        from benchmarks.cm_ibq.collect import collect
        from benchmarks.cm_ibq.page import write_page
        from benchmarks.cm_ibq.pictures import draw

        results = collect("test")
        write_json(RESULTS, results)
        draw(results)
        write_page(results)
    return 0


if __name__ == "__main__":
    from cmibq.demo.training import restart_with_heap_settings

    restart_with_heap_settings()
    raise SystemExit(main())
