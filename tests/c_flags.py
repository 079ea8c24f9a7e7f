"""Print the flags clang-tidy needs to read the C sources the way setup.py compiles them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy


def omp_folder() -> Path:
    """Return a folder that holds GCC's omp.h and nothing else: the clang wheels ship none."""
    folder = Path(tempfile.gettempdir(), "cmibq-lint-omp")
    folder.mkdir(exist_ok=True)
    command = ["gcc", "-print-file-name=include/omp.h"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    shutil.copyfile(found, folder / "omp.h")
    return folder


def main() -> None:
    flags = ["-std=c11", "-Icsrc", "-fopenmp", "-DPy_LIMITED_API=0x030B0000"]
    flags += ["-DNPY_TARGET_VERSION=NPY_1_23_API_VERSION"]
    for path in (sysconfig.get_path("include"), numpy.get_include(), omp_folder()):
        flags += ["-isystem", str(path)]
    sys.stdout.write(" ".join(flags))


if __name__ == "__main__":
    main()
