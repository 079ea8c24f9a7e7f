"""The tables of docs/calm-results.md: composed towers against controls.

    python benchmarks/calm/run.py [--rows calm,late] [--seeds 0] [--split test] [--quick]

What was trained and asked lies in .work/calm, or where $CMIBQ_CALM says. A finished cell is never
made again, so a run that was stopped goes on where it was. At the end results.json, the tables and
the picture of the page are written from all cells there are (not with --quick or another split than
test: then the figures are printed).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.calm import tasks
from benchmarks.calm.cells import made, prepare
from benchmarks.calm.tasks import Cell
from cmibq.demo.album import make_album
from cmibq.demo.tiles import KINDS
from cmibq.fileio import read_json, write_json

__all__ = ["RESULTS", "main"]

RESULTS = Path(__file__).with_name("results.json")
_QUICK = tasks.Plan(steps=20, pictures=300, asked=60)


def _options() -> Any:
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("--rows", default=None, help="default: all; empty: only write")
    parser.add_argument("--seeds", default=",".join(map(str, tasks.SEEDS)))
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--rate", type=float, help="another learning rate, for looking (dev)")
    parser.add_argument("--quick", action="store_true", help="20 steps, for trying the code")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the albums")
    parser.add_argument("--only", action="store_true", help="write no tables")
    parser.add_argument("--facts", action="store_true", help="also measure step 0, int8, times")
    return parser.parse_args()


def _wanted(options: Any) -> list[Cell]:
    plan = _QUICK if options.quick else tasks.PLAN
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.rows is not None:
        rows = [row for row in options.rows.split(",") if row]
        cells = tasks.cells_of(rows, seeds=seeds, split=options.split, plan=plan)
    else:
        main_rows = (*tasks.MAIN, *tasks.TWINS)
        cells = tasks.cells_of(main_rows, seeds=seeds, split=options.split, plan=plan)
        cells += tasks.cells_of(tasks.ABLATION, seeds=seeds[:1], split=options.split, plan=plan)
    if options.rate:
        cells = [Cell(c.row, options.rate, c.seed, c.split, c.plan) for c in cells]
    return cells


def _print(cell: Cell, found: dict[str, Any]) -> None:
    kinds = [k for some in make_album(cell.split, cell.plan.asked).kinds for k in some]
    told = []
    for kind in KINDS:
        some = [r for r, k in zip(found["right"], kinds, strict=True) if k == kind]
        told.append(f"{kind} {100 * sum(some) / max(1, len(some)):.1f}")
    right, record = found["right"], found["record"]
    loss = sum(found["losses"]) / len(right)
    print(
        f"{cell.name}: {100 * sum(right) / len(right):.1f} % loss {loss:.3f} ({', '.join(told)});"
        f" {record['parameters']} parameters, {record['seconds']} s",
        flush=True,
    )


def _one(cell: Cell) -> tuple[Cell, dict[str, Any]]:
    return cell, made(cell)


def _all(cells: list[Cell], jobs: int) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Make cells, in several processes where that is wanted; what towers see is shared by them."""
    if jobs == 1 or not cells:
        yield from map(_one, cells)
        return
    prepare(cells[0])
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(_one, cells)


def main() -> int:
    """Make what is asked for and write the results."""
    import torch

    options = _options()
    torch.set_num_threads(1)  # so small that a second thread costs more than it brings
    for cell, found in _all(_wanted(options), options.jobs):
        _print(cell, found)
    if options.split == "test" and not options.quick and not options.only:
        from benchmarks.calm.collect import collect
        from benchmarks.calm.facts import facts
        from benchmarks.calm.page import write_page
        from benchmarks.calm.pictures import draw

        results = collect("test")
        known = read_json(RESULTS) if RESULTS.is_file() else {}
        results["facts"] = facts() if options.facts else known.get("facts")
        results["times"] = known.get("times")
        write_json(RESULTS, results)
        draw(results)
        write_page(results)
    return 0


if __name__ == "__main__":
    from cmibq.demo.training import restart_with_heap_settings

    restart_with_heap_settings()
    raise SystemExit(main())
