"""Measure every axis, or some, and bring `results.json` up to date axis by axis.

    python benchmarks/run.py [--axis NAME ...] [--case TEXT] [--threads N] [--quick | --short]
    python benchmarks/run.py --axis NAME --isa avx2 --out FILE     another level of instructions

Each axis and thread count has a process of its own, whose environment is set here: NumPy's BLAS
free to choose its kernels, memory recycled instead of returned to the system after every call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import machine, results
from benchmarks.cases import AXES, CASES, cases

UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_WAIT_POLICY", "CMIBQ_ISA")
"""Would slow NumPy's BLAS to half speed, or change how OpenMP and cmibq run."""

RECYCLED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc keeps freed memory, so that no call is timed with page faults of its result."""


def environment(threads: int, recycled: bool, isa: str) -> dict[str, str]:
    """Return the environment of a child; an empty `isa` is the best that the CPU runs."""
    env = {k: v for k, v in os.environ.items() if k not in UNSET and k not in RECYCLED}
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    env |= dict.fromkeys(counts, str(threads)) | (RECYCLED if recycled else {})
    cpu = Path("/proc/cpuinfo").read_text()
    if "AuthenticAMD" in cpu and "avx512f" in cpu:  # OpenBLAS picks its AVX2 kernels there
        env["OPENBLAS_CORETYPE"] = "SkylakeX"
    env |= {"CMIBQ_ISA": isa} if isa else {}
    return env | {"PYTHONPATH": sys.path[0], "OPENVINO_TELEMETRY_DISABLE": "1"}


def child(
    axis: str, threads: int, options: argparse.Namespace, default: bool = False
) -> tuple[list[dict[str, Any]], bool]:
    """Return the rows that a child process measured, and whether every case ran."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.child", "--axis", axis, "--out", str(out)]
        command += ["--threads", str(threads), "--case", options.case]
        command += ["--quick"] * options.quick + ["--short"] * options.short
        command += ["--default-malloc"] * default
        done = subprocess.run(
            command, env=environment(threads, not default, options.isa), check=False
        )
        return (json.loads(out.read_text()) if out.exists() else []), done.returncode == 0


def measure_axis(axis: str, options: argparse.Namespace) -> tuple[list[dict[str, Any]], bool]:
    """Return the rows of an axis at every thread count, and whether every case ran."""
    chosen, fine = cases(axis, options.case, options.quick), True
    found: list[dict[str, Any]] = []
    counts = sorted({t for case in chosen for t in case.threads})
    for threads in counts[-1:] if options.quick else counts:
        if options.threads and threads != options.threads:
            continue
        rows, good = child(axis, threads, options)
        fine &= good
        if not (options.quick or options.short) and any(case.default_malloc for case in chosen):
            plain, good = child(axis, threads, options, default=True)
            fine &= good
            for row in plain:
                named = {f"{name} (default malloc)": v for name, v in row["peers"].items()}
                for into in rows:
                    if into["case"] == row["case"]:
                        into["peers"] |= named
        found += rows
    return found, fine


def main() -> int:
    """Run the axes asked for; return 1 if a case failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--axis", nargs="*", default=AXES, choices=AXES)
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--threads", type=int, default=0, help="only this thread count")
    parser.add_argument("--isa", default="", help="level of cmibq's kernels; needs --out")
    parser.add_argument("--quick", action="store_true", help="few cases, all cores, short samples")
    parser.add_argument("--short", action="store_true", help="every case, short samples")
    parser.add_argument("--out", type=Path, help="default: results.json, or results-quick.json")
    options = parser.parse_args()
    if options.isa and not options.out:
        parser.error("--isa needs --out: results.json is for the best level of the machine")
    out = options.out or (results.QUICK if options.quick else results.RESULTS)
    start, failed, rates = time.perf_counter(), [], []
    for axis in options.axis:
        print(f"{axis} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
        rows, fine = measure_axis(axis, options)
        failed += [] if fine else [axis]
        rates += [(row["threads"], row.pop("probes")) for row in rows]
        names = [(case.axis, case.name) for case in CASES]
        results.write(out, results.merge(results.read(out), rows, names))
    if out == results.RESULTS:
        machine.update(rates)
    print(f"{out}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}; the traceback is above", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
