"""How much memory and disk a model takes."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cmibq import memory

__all__ = ["PeakMemory", "disk_bytes", "peak_memory", "weight_bytes"]

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_NOT_WEIGHTS = ("probe.safetensors", "buffers.safetensors")


def disk_bytes(folder: str | Path) -> int:
    """Return the size of all files below a folder."""
    return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())


def weight_bytes(folder: str | Path) -> int:
    """Return the size of the weight files of a model folder or package."""
    files = {p for pattern in _WEIGHTS for p in Path(folder).glob(pattern)}
    return sum(p.stat().st_size for p in files if p.name not in _NOT_WEIGHTS)


@dataclass
class PeakMemory:
    """Highest resident memory of the process while it was watched.

    Args:
        bytes: the peak; 0 until the watch ends.
        since_start: True where the system cannot reset its counter, so that the peak is that of
            the whole process so far.
    """

    bytes: int = 0
    since_start: bool = False

    def so_far(self) -> int:
        """Return the peak up to now, in bytes, while it is watched."""
        return _read_peak(not self.since_start)


def _reset_peak() -> bool:
    """Give memory that is free back to the system and start the peak counter afresh."""
    gc.collect()
    memory.trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _read_peak(was_reset: bool) -> int:
    if was_reset:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Watch the resident memory of this process.

    Example:
        >>> with peak_memory() as peak:
        ...     _ = bytes(50_000_000)
        >>> peak.bytes > 50_000_000
        True
    """
    was_reset = _reset_peak()
    peak = PeakMemory(since_start=not was_reset)
    try:
        yield peak
    finally:
        peak.bytes = _read_peak(was_reset)
