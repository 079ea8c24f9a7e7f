"""Loading the C extension: one OpenMP runtime per process, ISA level, thread count, fork."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmibq.errors import ConfigError

if TYPE_CHECKING:
    from cmibq._C import Kernels

_MOST_THREADS = 1024  # what Kernels takes

__all__ = ["default_threads", "isa_level", "kernels", "native"]


@functools.cache
def native() -> Any:
    """Return the C extension module, after torch's own OpenMP runtime if torch is installed.

    The first libgomp opened serves the whole process. torch ships one, so it is opened first (found
    without importing torch); then torch and cmibq share one thread pool whichever is used first.
    """
    spec = importlib.util.find_spec("torch") if "torch" not in sys.modules else None
    if spec is not None and spec.submodule_search_locations:
        for lib in Path(spec.submodule_search_locations[0], "lib").glob("libgomp*.so*"):
            ctypes.CDLL(str(lib), mode=ctypes.RTLD_GLOBAL)
    try:
        from cmibq import _C
    except ImportError as error:
        raise ImportError(
            f"the C extension of cmibq cannot be loaded ({error}); build it with 'pip install .' "
            "or 'pip install -e .' in the source tree"
        ) from error
    return _C


def default_threads() -> int:
    """Return the thread count: torch's setting, else OMP_NUM_THREADS, else all usable cores."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if text.isdecimal() and int(text) > 0:
        return min(int(text), _MOST_THREADS)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def isa_level() -> str:
    """Return the ISA level in use: the best this CPU runs, or CMIBQ_ISA, which can only lower it.

    Raises:
        ConfigError: CMIBQ_ISA names a level that this CPU does not run.
    """
    levels: tuple[str, ...] = native().ISAS
    wanted = os.environ.get("CMIBQ_ISA") or levels[-1]
    if wanted not in levels:
        raise ConfigError(f"CMIBQ_ISA is {wanted!r}; this CPU runs {', '.join(levels)}")
    return wanted


_forked = False


def _after_fork() -> None:
    """Run a forked child on one thread: torch too, whose pool it would wait for for ever.

    The extension notices a fork by itself only where it was loaded before, hence the flag.
    """
    global _forked
    _forked = True
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_MADE: dict[tuple[str | None, int], Kernels] = {}


def kernels(threads: int | None = None, isa: str | None = None) -> Kernels:
    """Return the kernels for a thread count and an ISA level (defaults: as the process is set).

    Args:
        threads: thread count, at least 1; None follows `default_threads`.
        isa: ISA level; None follows `isa_level`.

    Example:
        >>> kernels(threads=1, isa="scalar")
        Kernels(isa='scalar', threads=1)
    """
    wanted = isa or os.environ.get("CMIBQ_ISA")
    count = default_threads() if threads is None else threads
    count = min(count, 1) if _forked else count
    made = _MADE.get((wanted, count))
    if made is None:
        made = _MADE[wanted, count] = native().Kernels(isa or isa_level(), count)
    return made
