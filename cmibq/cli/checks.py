"""The checks of ``cmibq doctor``: each looks at one thing and knows the cure in one line."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import cmibq
from cmibq.runtime import default_threads, isa_level, kernels, native

__all__ = ["ALL", "Check", "check_environment", "check_torchvision", "check_transformers"]

GIB: Final = 1 << 30
_EXTRAS: Final = {
    "torch": ("torch",),
    "cli": ("jsonargparse", "tqdm", "pyyaml"),
    "hf": ("transformers", "safetensors", "pillow"),
    "data": ("pyarrow",),
    "report": ("matplotlib", "jinja2"),
    "demo": ("scikit-learn", "scikit-image"),
}


@dataclass(frozen=True)
class Check:
    """What one check found; `cure` says what to do and is empty where all is well."""

    name: str
    state: Literal["ok", "warn", "fail"]
    value: str
    cure: str = ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_versions() -> list[Check]:
    """Look at Python, cmibq and the packages of every extra."""
    python = platform.python_version()
    old = sys.version_info < (3, 11)
    cure = "use Python 3.11 or newer" if old else ""
    found = [
        Check("python", "fail" if old else "ok", f"{python}, {platform.platform()}", cure),
        Check("cmibq", "ok", f"{cmibq.__version__} in {Path(cmibq.__file__).parent}"),
    ]
    for extra, packages in {"": ("numpy",), **_EXTRAS}.items():
        for package in packages:
            number = _version(package)
            cure = f"pip install 'cmibq[{extra}]'" if extra else "pip install numpy"
            found.append(
                Check(package, "ok", number) if number else Check(package, "warn", "missing", cure)
            )
    return found


def check_extension() -> list[Check]:
    """Load the C extension and compare its levels with the scalar one on a small matrix."""
    try:
        levels = native().ISAS
        level = isa_level()
    except (ImportError, ValueError) as error:
        cure = "unset CMIBQ_ISA" if os.environ.get("CMIBQ_ISA") else "build it: pip install ."
        return [Check("C extension", "fail", str(error), cure)]
    import numpy as np

    x = np.linspace(-3, 3, 4 * 67, dtype=np.float32).reshape(4, 67)
    scale = np.array([0.1, 0.3, 0.5, 0.7], np.float32)
    lo, hi = np.full(4, -4, np.float32), np.full(4, 3, np.float32)
    made = {isa: np.empty_like(x) for isa in levels}
    for isa, out in made.items():
        kernels(threads=1, isa=isa).fakequant_row(x, scale, lo, hi, out)
    wrong = [isa for isa, out in made.items() if out.tobytes() != made["scalar"].tobytes()]
    if wrong:
        cure = f"set CMIBQ_ISA=scalar and report this CPU ({', '.join(wrong)})"
        return [Check("C extension", "fail", f"{', '.join(wrong)} disagree with scalar", cure)]
    if level != levels[-1]:
        value = f"{level}, lowered by CMIBQ_ISA (this CPU runs {', '.join(levels)})"
        return [Check("C extension", "warn", value, "unset CMIBQ_ISA for full speed")]
    return [Check("C extension", "ok", f"level {level}; {', '.join(levels)} agree")]


def check_machine() -> list[Check]:
    """Look at the processor, the threads, the memory and the disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads, quota = default_threads(), _cpu_quota()
    value = f"{threads} of {cores} usable cores"
    limit = min(float(cores or 1), quota or float("inf"))
    if threads > limit:
        cure = f"export OMP_NUM_THREADS={max(1, int(limit))}"
        threading = Check("threads", "warn", f"{value}; only {limit:g} are granted", cure)
    else:
        threading = Check("threads", "ok", value)
    free, total = _memory()
    few = free < 2 * GIB
    memory = Check(
        "memory",
        "warn" if few else "ok",
        f"{free / GIB:.1f} of {total / GIB:.1f} GiB free",
        "close other programs, or use fewer samples" if few else "",
    )
    room = shutil.disk_usage(".").free
    full = room < GIB
    disk = Check(
        "disk",
        "warn" if full else "ok",
        f"{room / GIB:.1f} GiB free here",
        "free some space, or write elsewhere with --output_path" if full else "",
    )
    return [Check("processor", "ok", _processor()), threading, memory, disk]


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _cpu_quota() -> float | None:
    """Return how many cores a container grants, if it limits them (cgroup v2)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _memory() -> tuple[int, int]:
    """Return (available, total) bytes, within a container's limit where there is one."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    total, free = pages * size, os.sysconf("SC_AVPHYS_PAGES") * size
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        free = int(found.group(1)) * 1024 if found else free
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, free = min(total, limit), min(free, limit - used)
    except (OSError, ValueError):
        pass  # no container, or no limit
    return free, total


def check_openmp() -> list[Check]:
    """Load the extension and torch, then count the OpenMP runtimes in this process."""
    for load in (native, lambda: importlib.import_module("torch")):
        try:
            load()
        except Exception:  # what is broken is named by its own check
            continue
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    found = sorted(set(re.findall(r"(/\S*lib(?:gomp|omp|iomp5)\b[^\s/]*)", maps)))
    names = ", ".join(found) or "none"
    if len(found) > 1:
        cure = "two thread pools fight for the cores: build cmibq with GCC in this environment"
        return [Check("OpenMP runtimes", "warn", names, cure)]
    return [Check("OpenMP runtimes", "ok", names)]


def check_environment(environ: Mapping[str, str] | None = None) -> list[Check]:
    """Look for environment variables that make numbers slow or wrong."""
    env = os.environ if environ is None else environ
    found = []
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        if name in env:
            value = f"{env[name]}: NumPy's and SciPy's matrix products may run at half speed"
            found.append(Check(name, "warn", value, f"unset {name}"))
    if env.get("KMP_DUPLICATE_LIB_OK"):
        value = "set: hides that two OpenMP runtimes are loaded"
        found.append(Check("KMP_DUPLICATE_LIB_OK", "warn", value, "unset KMP_DUPLICATE_LIB_OK"))
    if "san.so" in env.get("LD_PRELOAD", ""):
        found.append(Check("LD_PRELOAD", "warn", "a sanitizer is loaded: slow", "unset LD_PRELOAD"))
    return found or [Check("environment", "ok", "no known trap is set")]


def check_torchvision() -> list[Check]:
    """Compare what torch and torchvision were built for, without importing torchvision."""
    mine, theirs = _built_for("torch"), _built_for("torchvision")
    if mine is None or theirs is None:
        return []
    if (mine == "cpu") == (theirs == "cpu"):
        return [Check("torchvision", "ok", f"built for {theirs}, torch for {mine}")]
    value = f"built for {theirs} beside torch for {mine}: transformers cannot import any model"
    cure = "pip uninstall -y torchvision (cmibq does not need it)"
    return [Check("torchvision", "fail", value, cure)]


def _built_for(package: str) -> str | None:
    """Return ``"cpu"``, ``"CUDA 12.8"`` ... as the package's version.py says; None if absent."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return None
    found = re.search(r"^(cuda|hip)\b[^=\n]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return f"{found.group(1).upper()} {found.group(2)}" if found else "cpu"


def check_transformers() -> list[Check]:
    """Check the version of transformers and that its LLaVA can be imported."""
    number = _version("transformers")
    if number is None:
        return []
    major = int(number.partition(".")[0])
    if major != 5:
        cure = "pip install 'transformers>=5,<6'"
        return [Check("transformers version", "fail", f"{number}; cmibq needs 5.x", cure)]
    try:
        importlib.import_module("transformers.models.llava.modeling_llava")
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        cure = "reinstall torch and transformers; uninstall a torchvision that does not fit"
        return [Check("transformers import", "fail", f"LLaVA cannot be imported: {reason}", cure)]
    return [Check("transformers import", "ok", "LLaVA can be imported")]


ALL: Final[tuple[Callable[[], list[Check]], ...]] = (
    check_versions,
    check_machine,
    check_extension,
    check_openmp,
    check_environment,
    check_torchvision,
    check_transformers,
)
