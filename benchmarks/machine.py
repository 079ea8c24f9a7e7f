"""The machine and the libraries that the results come from, in `benchmarks/machine.json`."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import probes, results
from cmibq.runtime import isa_level, native

__all__ = ["update"]

PACKAGES = ("torch", "numpy", "scipy", "onnxruntime", "openvino")


def _field(text: str, name: str) -> str:
    for line in text.splitlines():
        if line.partition(":")[0].strip() == name:
            return line.partition(":")[2].strip()
    return "unknown"


def _caches() -> dict[str, str]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        found[f"L{level} {kind.lower()}"] = size
    return found


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _rates(
    samples: Iterable[tuple[int, Mapping[str, float]]], old: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Return the rate of every probe per thread count, in G operations or GB per second.

    Medians over the cases just measured; else what was known before; else what it is now.
    """
    seen: dict[tuple[str, int], list[float]] = defaultdict(list)
    for threads, rates in samples:
        for name, rate in rates.items():
            seen[name, threads].append(rate)
    found: dict[str, dict[str, float]] = {}
    for name in probes.NAMES:
        for threads in (1, 2):
            known = old.get(name, {}).get(str(threads))
            if (name, threads) in seen:
                known = statistics.median(seen[name, threads]) / 1e9
            if known is None:
                known = probes.measure(name, threads, 0.2) / 1e9
            found.setdefault(name, {})[str(threads)] = round(known, 1)
    return found


def update(samples: Iterable[tuple[int, Mapping[str, float]]]) -> None:
    """Write what is known of the machine."""
    cpu, memory = Path("/proc/cpuinfo").read_text(), Path("/proc/meminfo").read_text()
    old: dict[str, Any] = {}
    if results.MACHINE.exists():
        old = json.loads(results.MACHINE.read_text())
    family, model = _field(cpu, "cpu family"), _field(cpu, "model")
    data = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": _field(cpu, "model name") + f" (family {family}, model {model})",
        "cores": os.cpu_count(),
        "hypervisor": " hypervisor " in f" {_field(cpu, 'flags')} ",
        "nominal_mhz": _field(cpu, "cpu MHz"),
        "caches": _caches(),
        "memory": f"{int(_field(memory, 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "kernel": platform.release().partition("-")[0],
        "levels": list(native().ISAS),
        "level": isa_level(),
        "versions": _versions(),
        "unset": [n for n in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if n in os.environ],
        "rates": _rates(samples, old.get("rates", {})),
    }
    results.write(results.MACHINE, data)
