"""What a result was made with: versions, processor, threads."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import torch

import cmibq
from cmibq.runtime import isa_level

__all__ = ["environment"]

_PACKAGES = ("numpy", "torch", "transformers")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, str | int | None]:
    """Return versions, processor, instruction set and threads of this process.

    Example:
        >>> sorted(environment())
        ['cmibq', 'cpu', 'isa', 'machine', 'numpy', 'python', 'threads', 'torch', 'transformers']
    """
    return {
        "cmibq": cmibq.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "machine": platform.machine(),
        "cpu": _processor(),
        "isa": isa_level(),
        "threads": torch.get_num_threads(),
    }
