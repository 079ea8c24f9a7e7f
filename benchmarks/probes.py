"""The machine's limits, measured between the cases by a small C program compiled here and now."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["NAMES", "Probes", "measure", "needed"]

NAMES = (
    "fma_f32", "vnni_int8", "vdpbf16ps", "amx_int8", "amx_bf16",
    "read", "read64", "copy", "nt_copy",
)  # fmt: skip
"""Rates: float32 FMA, int8 dot products (VNNI, or maddubs), bf16 dot products, AMX; memory reads of
256 MiB and of 64 MiB, and copies of 64 MiB with plain and with streaming stores."""

SOURCE = Path(__file__).with_name("probes.c")
FLAGS = "-O2 -march=native -std=gnu11 -ffp-contract=fast -fPIC -shared -pthread".split()
MIB = 1 << 20


class Probes:
    """The least milliseconds for an amount of work, from measured rates.

    Args:
        rate: name of a probe -> operations or bytes per second, 0 where the CPU lacks it.

    Example:
        >>> Probes({"read": 1e10, "vnni_int8": 1e12, "amx_int8": 0}.__getitem__).int8(2e9)
        2.0
    """

    def __init__(self, rate: Callable[[str], float]) -> None:
        self._rate = rate

    def _best(self, work: float, *names: str) -> float:
        rate = max([self._rate(name) for name in names])
        return 1e3 * work / rate if rate else float("inf")

    def fma(self, flops: float) -> float:
        """Return the time of float32 multiply-adds at the FMA peak (two operations each)."""
        return self._best(flops, "fma_f32")

    def vnni(self, ops: float) -> float:
        """Return the time of int8 multiply-adds at the peak of the vector unit."""
        return self._best(ops, "vnni_int8")

    def int8(self, ops: float) -> float:
        """Return the time of int8 multiply-adds at the best unit this CPU has (AMX or vector)."""
        return self._best(ops, "vnni_int8", "amx_int8")

    def bf16(self, flops: float) -> float:
        """Return the time of bf16 multiply-adds at the best unit this CPU has."""
        return self._best(flops, "vdpbf16ps", "amx_bf16", "fma_f32")

    def read(self, size: float) -> float:
        """Return the time to read bytes from DRAM (256 MiB that no cache holds)."""
        return self._best(size, "read")

    def read64(self, size: float) -> float:
        """Return the time to read bytes of a 64 MiB buffer read again and again, as one weight."""
        return self._best(size, "read64")

    def plain_copy(self, size: float) -> float:
        """Return the time to copy with plain stores; bytes read and written count."""
        return self._best(size, "copy")

    def copy(self, size: float) -> float:
        """Return the time to copy with streaming stores; bytes read and written count."""
        return self._best(size, "nt_copy", "copy")


def needed(formula: Callable[[Probes], float]) -> list[str]:
    """Return the probes that a limit formula asks for."""
    seen: dict[str, None] = {}

    def note(name: str) -> float:
        seen[name] = None
        return 1.0

    formula(Probes(note))
    return list(seen)


@functools.cache
def _library() -> ctypes.CDLL:
    code = SOURCE.read_bytes()
    key = hashlib.sha256(code + " ".join(FLAGS).encode()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"cmibq-probes-{os.getuid()}-{key}.so"
    if not built.exists():
        part = built.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", *FLAGS, str(SOURCE), "-o", str(part)], check=True)
        os.replace(part, built)
    return ctypes.CDLL(str(built))


@functools.cache
def _buffer(size: int, which: int) -> int:
    """Return the address of a buffer of ones that stays for the whole process, page-aligned."""
    array = np.ones(size // 4 + MIB, np.float32)
    _KEPT.append(array)
    return int(-(-array.ctypes.data // (2 * MIB)) * (2 * MIB))


_KEPT: list[np.ndarray] = []


def measure(name: str, threads: int, seconds: float = 0.025) -> float:
    """Return the rate of a probe now: operations or bytes per second, 0 where the CPU lacks it."""
    function = getattr(_library(), "probe_" + ("read" if name == "read64" else name))
    function.restype = ctypes.c_double
    size = {"read": 256 * MIB, "read64": 64 * MIB, "copy": 64 * MIB, "nt_copy": 64 * MIB}
    of = size.get(name, 0)
    buffers = [_buffer(of, k) if of and (k == 0 or "copy" in name) else 0 for k in range(2)]
    return float(
        function(
            ctypes.c_int(threads),
            ctypes.c_double(seconds),
            *(ctypes.c_void_p(b) for b in buffers),
            ctypes.c_size_t(of),
        )
    )
