"""The C extension as a whole: refused arguments, leaks, threads, fork, symbols, source rules."""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cmibq.runtime import native

ROOT = Path(__file__).parents[1]
C = native()


def test_the_build_under_test_is_the_one_meant() -> None:
    assert os.environ.get("CMIBQ_EXPECT", "") in C.__file__


def good(rows: int = 4, cols: int = 8) -> list[np.ndarray]:
    one = np.ones(rows, np.float32)
    x = np.ones((rows, cols), np.float32)
    return [x, one, -8 * one, 7 * one, np.empty_like(x)]


def swapped(index: int, value: object) -> list[object]:
    args: list[object] = [*good()]
    args[index] = value
    return args


READ_ONLY = np.empty((4, 8), np.float32)
READ_ONLY.flags.writeable = False
UNALIGNED = np.zeros(4 * 8 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(4, 8)
WIDE = np.ones((4, 16), np.float32)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (swapped(0, None), TypeError, "x is <class 'NoneType'>, expected a numpy array of float32"),
        (swapped(0, [[1.0]]), TypeError, "x is <class 'list'>"),
        (swapped(0, np.ones((4, 8))), TypeError, "x has dtype float64, expected native float32"),
        (swapped(0, np.ones((4, 8), ">f4")), TypeError, "x has dtype >f4"),
        (swapped(0, np.ones(8, np.float32)), ValueError, "x has 1 dimensions, expected 2"),
        (swapped(0, WIDE[:, ::2]), ValueError, "x must be C-contiguous"),
        (swapped(0, WIDE[:, :8][::-1]), ValueError, "x must be C-contiguous"),
        (swapped(0, UNALIGNED), ValueError, "x must be C-contiguous and aligned"),
        (swapped(1, np.ones(3, np.float32)), ValueError, "scale: dimension R is 3, expected 4"),
        (swapped(4, READ_ONLY), ValueError, "out is read-only"),
        (swapped(4, np.empty((4, 9), np.float32)), ValueError, "out: dimension C is 9, expected 8"),
        (swapped(1, np.float32([1, 1, 0, 1])), ValueError, r"scale\[2\] is 0; every scale must"),
        (swapped(1, np.float32([1, np.nan, 1, 1])), ValueError, r"scale\[1\] is nan"),
        (swapped(1, np.float32([1, 1, 1, np.inf])), ValueError, r"scale\[3\] is inf"),
        (swapped(2, np.float32([0, 0, 0, 0.5])), ValueError, r"lo/hi\[3\] is 0.5; bounds must"),
        (swapped(2, np.full(4, 9, np.float32)), ValueError, r"lo/hi\[0\] is 7"),
        (good()[:4], TypeError, "fakequant takes 5 arguments, got 4"),
    ],
)
def test_bad_arguments_are_refused(args: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        C.Kernels().fakequant_row(*args)


def test_output_must_not_overlap_an_input() -> None:
    memory = np.zeros(4 * 8 + 8, np.float32)
    x, out = memory[:32].reshape(4, 8), memory[8:40].reshape(4, 8)
    args = good()
    args[0], args[4] = x, out
    with pytest.raises(ValueError, match="out overlaps x in memory"):
        C.Kernels().fakequant_row(*args)
    args[4] = x  # the very same array is allowed where the contract says so
    C.Kernels().fakequant_row(*args)


class Number:
    """A number whose conversion runs Python code."""

    def __init__(self, act: Callable[[], float]) -> None:
        self.act = act

    def __index__(self) -> int:
        return int(self.act())

    def __float__(self) -> float:
        return self.act()


@pytest.mark.parametrize("op", ["codes_row", "qparams_mse_row"])
def test_a_conversion_that_shrinks_an_array_leaves_no_stale_pointer(op: str) -> None:
    x, one, zero = (
        np.ones((2000, 2000), np.float32),
        np.ones(2000, np.float32),
        np.zeros(2000, "u1"),
    )

    def shrink() -> float:
        x.resize((0, 0), refcheck=False)
        return 0.5 if op == "qparams_mse_row" else 4

    args: dict[str, tuple[object, ...]] = {
        "codes_row": (x, one, zero, Number(shrink), np.empty(x.shape, np.uint8)),
        "qparams_mse_row": (x, 4, 0, 3, Number(shrink), one, zero, np.empty(2000)),
    }
    with pytest.raises(ValueError, match="dimension R is 2000, expected 0"):
        getattr(C.Kernels(), op)(*args[op])


def test_a_conversion_keeps_its_own_error_and_a_large_number_is_a_value() -> None:
    def stop() -> float:
        raise KeyboardInterrupt

    codes, one = np.zeros((1, 1), np.uint8), np.ones(1, np.float32)
    with pytest.raises(KeyboardInterrupt):
        C.Kernels().pack_row(codes, Number(stop), codes.copy())
    with pytest.raises(KeyboardInterrupt):
        C.Kernels().qparams_mse_row(one[None], 4, 0, 3, Number(stop), one, codes[0], np.ones(1))
    with pytest.raises(ValueError, match=r"bits is 1000000000000000000000, allowed are 1\.\.8"):
        C.Kernels().pack_row(codes, 10**21, codes.copy())
    with pytest.raises(TypeError, match=r"bits is 2\.5, expected an integer in 1\.\.8"):
        C.Kernels().pack_row(codes, 2.5, codes.copy())


def test_more_groups_than_inputs_are_refused() -> None:
    x, out = np.empty((2, 0), np.int8), np.empty((2, 0), np.float32)
    packed, scale = np.empty((0, 0), np.uint8), np.empty((0, 2**61), np.uint16)
    work = np.empty(64, np.uint8)
    with pytest.raises(ValueError, match="groups for rows of 0 inputs"):
        C.Kernels().qgemm_s8(x, np.ones(2, np.float32), packed, 4, scale, None, None, out, work)


def test_kernels_object_is_immutable_and_checked() -> None:
    k = C.Kernels("scalar", 3)
    assert (k.isa, k.threads, repr(k)) == ("scalar", 3, "Kernels(isa='scalar', threads=3)")
    with pytest.raises(AttributeError):
        k.threads = 2
    with pytest.raises(ValueError, match="isa is 'sse9'"):
        C.Kernels("sse9")
    with pytest.raises(ValueError, match=r"threads is 0, allowed are 1\.\.1024"):
        C.Kernels(None, 0)
    with pytest.raises(TypeError):
        C.Kernels.threads = 1


def test_every_method_shows_its_signature() -> None:
    methods = [m for m in vars(C.Kernels) if not m.startswith("_") and m not in ("isa", "threads")]
    assert len(methods) >= 5
    for name in methods:
        assert "self" in str(inspect.signature(getattr(C.Kernels, name)))


def test_no_memory_is_lost_on_success_or_error() -> None:
    k, args, bad = C.Kernels(), good(), swapped(1, np.zeros(4, np.float32))

    def work() -> None:
        for _ in range(500):
            k.fakequant_row(*args)
            with pytest.raises(ValueError, match="scale"):
                k.fakequant_row(*bad)
            C.Kernels(None, 2)

    work()
    counts = [sys.getrefcount(a) for a in args]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    work()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000
    assert counts == [sys.getrefcount(a) for a in args]


def test_many_python_threads_at_once() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 1000)).astype(np.float32)
    one = np.full(300, 0.1, np.float32)
    want = np.empty_like(x)
    C.Kernels(None, 1).fakequant_row(x, one, -80 * one, 70 * one, want)
    outs = [np.empty_like(x) for _ in range(8)]

    def call(out: np.ndarray) -> None:
        for _ in range(5):
            C.Kernels(None, 2).fakequant_row(x, one, -80 * one, 70 * one, out)

    workers = [threading.Thread(target=call, args=(o,)) for o in outs]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert all(np.array_equal(o, want) for o in outs)


def _in_child(queue: multiprocessing.Queue) -> None:
    x = np.ones((300, 1000), np.float32)
    one = np.ones(300, np.float32)
    out = np.empty_like(x)
    C.Kernels(None, 2).fakequant_row(x, one, -8 * one, 7 * one, out)
    queue.put((C.forked(), float(out.sum())))


def test_a_forked_child_runs_serially_and_does_not_hang() -> None:
    x = np.ones((300, 1000), np.float32)
    one = np.ones(300, np.float32)
    C.Kernels(None, 2).fakequant_row(x, one, -8 * one, 7 * one, np.empty_like(x))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=20) == (True, 300000.0)
    child.join(20)
    assert child.exitcode == 0
    assert not C.forked()


def test_import_under_dev_mode_and_a_second_import() -> None:
    code = "import importlib, sys, cmibq._C as a; del sys.modules['cmibq._C']; import cmibq._C as b"
    run = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_one_openmp_runtime_next_to_torch() -> None:
    code = (
        "from cmibq.runtime import native; native(); import torch;"
        "maps = open('/proc/self/maps').read().split();"
        "print(len({m for m in maps if 'libgomp' in m}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"


def test_only_the_init_function_is_exported() -> None:
    nm = subprocess.run(["nm", "-D", "--defined-only", C.__file__], capture_output=True, text=True)
    names = [line.split()[-1] for line in nm.stdout.splitlines()]
    ours = [n for n in names if not n.startswith(("__", "_init", "_fini", "_edata", "_end"))]
    assert [n for n in ours if not n.startswith(("OnPrint", "_ITM"))] == ["PyInit__C"]


def test_no_newer_openmp_than_torch_brings() -> None:
    symbols = subprocess.run(["readelf", "-V", C.__file__], capture_output=True, text=True).stdout
    wanted = {float(v) for v in re.findall(r"(?:GOMP|OMP)_(\d+\.\d+)", symbols)}
    assert max(wanted, default=0.0) <= 4.5


def sources(*folders: str) -> list[Path]:
    return [p for f in folders for p in sorted((ROOT / "csrc" / f).rglob("*.[ch]"))]


def test_source_rules() -> None:
    for path in sources("core", "kernels", "ops"):
        text = path.read_text()
        assert "Python.h" not in text, path
        assert not re.search(r"\b(malloc|calloc|realloc|aligned_alloc)\s*\(", text), path
    for path in sources("core", "kernels", "ops", "bind"):
        text = path.read_text()
        assert text.startswith("/* SPDX-License-Identifier: Apache-2.0 */"), path
        if path.name != "parallel.c":
            assert "omp.h" not in text, path
            assert "#pragma omp" not in text, path
        assert "#if 0" not in text, path
    for path in sources("kernels"):
        assert len(path.read_text().splitlines()) <= 200, path
        assert not re.search(
            r"^static (?!const|inline|void|int|size_t|float|double|__m|uint|cq_)",
            path.read_text(),
            re.M,
        ), path


def test_every_wrapper_releases_the_gil() -> None:
    helpers = ("blocks", "workspace", "bytes")
    for path in sources("bind"):
        statics, *bodies = re.split(r"\nPyObject \*cq_py_", path.read_text())
        shared = re.findall(r"\nstatic PyObject \*(\w+)\((?:(?!\n}).)*ALLOW_THREADS", statics, re.S)
        for body in bodies:
            name = body.split("(")[0]
            if not name.endswith(helpers):
                released = "Py_BEGIN_ALLOW_THREADS" in body or any(f"{f}(" in body for f in shared)
                assert released, f"{path.name}: {name}"
