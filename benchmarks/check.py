"""Check `results.json` against its schema, and print every row beside its bar.

    python benchmarks/check.py [FILE]

Exit status 1 if the file is malformed or an axis is missing; a missed bar is a figure, no error.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import results
from benchmarks.bars import AXES, judge

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Print the table of bars of a file of results."""
    path = Path(arguments[0]) if arguments else results.RESULTS
    rows = results.read(path)
    found = results.problems(rows)
    if path == results.RESULTS:
        present = {row["axis"] for row in rows}
        found += [f"no row for the axis {axis}" for axis in AXES if axis not in present]
    missed = 0
    print(f"{'axis':18s} {'case':34s} t {'ours ms':>10s} {'ratio':>7s} {'limit':>6s}  bar")
    for row in rows:
        verdict = judge(row, rows)
        missed += bool(verdict.missed)
        state = "MISSED " + "; ".join(verdict.missed) if verdict.missed else "met"
        print(
            f"{row['axis']:18s} {row['case']:34s} {row['threads']} {row['ours']:10.4g} "
            f"{verdict.ratio:7.2f} {verdict.fraction:6.2f}  {verdict.asked}: {state}"
        )
    print(f"{len(rows) - missed} of {len(rows)} rows meet their bar")
    for line in found:
        print(line, file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
