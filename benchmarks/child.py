"""The process that measures one axis at one thread count; `benchmarks/run.py` starts it."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import traceback
from pathlib import Path

from benchmarks import measure
from benchmarks.case import Case
from benchmarks.cases import cases

__all__ = ["main"]


def _fix_threads(threads: int) -> None:
    """Set torch to the thread count; OpenMP and OpenBLAS read the environment."""
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)


def _rows(case: Case, threads: int, pace: measure.Pace, default: bool) -> measure.Row | None:
    try:
        return measure.measure(case, threads, pace, case.default_malloc if default else None)
    except Exception:
        print(f"FAILED {case.axis}: {case.name}", file=sys.stderr)
        traceback.print_exc()
        return None
    finally:
        gc.enable()
        gc.collect()


def main() -> int:
    """Measure the cases named on the command line; write the rows as JSON to --out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--axis", required=True)
    parser.add_argument("--case", default="")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--default-malloc", action="store_true")
    options = parser.parse_args()
    _fix_threads(options.threads)
    pace = measure.QUICK if options.quick or options.short else measure.FULL
    chosen = [
        c
        for c in cases(options.axis, options.case, options.quick)
        if options.threads in c.threads and (c.default_malloc or not options.default_malloc)
    ]
    rows = [_rows(c, options.threads, pace, options.default_malloc) for c in chosen]
    good = [row for row in rows if row is not None]
    options.out.write_text(json.dumps(good))
    sys.stderr.flush()
    os._exit(0 if len(good) == len(rows) else 1)  # some peers' thread pools hang at exit


if __name__ == "__main__":
    sys.exit(main())
