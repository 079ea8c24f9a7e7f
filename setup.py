"""Lists the C extension; everything else is in pyproject.toml.

Environment: CMIBQ_SANITIZE=address|thread, CMIBQ_DEBUG=1, CMIBQ_COVERAGE=1, CMIBQ_WERROR=1.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

try:
    import numpy
except ImportError:
    sys.exit("cmibq needs NumPy to build: pip install 'numpy>=2', or build with isolation on")
if not Path(sysconfig.get_path("include"), "Python.h").exists():
    sys.exit("cmibq needs the Python headers to build: install python3-dev (Debian) or the like")

flags = "-std=c11 -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wvla".split()
flags += "-Werror=implicit-function-declaration -fvisibility=hidden".split()
flags += "-ffp-contract=off -fno-math-errno -fopenmp".split()
flags += ["-O0", "-g"] if os.environ.get("CMIBQ_DEBUG") else ["-O3"]
links = ["-fopenmp"]
macros: list[tuple[str, str | None]] = [("NPY_TARGET_VERSION", "NPY_1_23_API_VERSION")]
if os.environ.get("CMIBQ_DEBUG") or os.environ.get("CMIBQ_SANITIZE"):
    flags.append("-UNDEBUG")
if not FREE_THREADED:
    macros.append(("Py_LIMITED_API", "0x030B0000"))
if os.environ.get("CMIBQ_WERROR"):
    flags.append("-Werror")
if os.environ.get("CMIBQ_COVERAGE"):
    flags += ["--coverage", "-O0"]
    links.append("--coverage")
if kind := os.environ.get("CMIBQ_SANITIZE"):
    kinds = {"address": "address,undefined", "thread": "thread"}
    if kind not in kinds:
        sys.exit(f"CMIBQ_SANITIZE is {kind!r}; allowed are {', '.join(kinds)}")
    flags += ["-O1", "-g", f"-fsanitize={kinds[kind]}", "-fno-sanitize-recover=undefined"]
    links.append(f"-fsanitize={kinds[kind]}")

options: dict[str, dict[str, object]] = {}
if not os.access(ROOT, os.W_OK):  # a read-only source tree: build beside it
    scratch = tempfile.mkdtemp(prefix="cmibq-build-")
    options = {"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}}
if not FREE_THREADED:
    options["bdist_wheel"] = {"py_limited_api": "cp311"}

setup(
    ext_modules=[
        Extension(
            "cmibq._C",
            sources=sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.c")),
            depends=sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.[hd]*")),
            include_dirs=["csrc", numpy.get_include()],
            define_macros=macros,
            extra_compile_args=flags,
            extra_link_args=links,
            py_limited_api=not FREE_THREADED,
        )
    ],
    options=options,
)
