"""Every allocation may fail: MemoryError, nothing lost, inputs unchanged, the next call right."""

from __future__ import annotations

import _imp
import gc
import importlib.util
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cmibq import arrays, memory
from cmibq.runtime import native
from tests.kernels.cases import CASES

testcapi = pytest.importorskip("_testcapi", reason="this Python comes without its test modules")
C = native()
MOST = 120
"""More allocations than any call makes."""


class Recorder:
    """Kernels that remember the calls made with them."""

    def __init__(self) -> None:
        self.kernels = C.Kernels()
        self.calls: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self.kernels, name)

        def call(*args: object) -> object:
            self.calls.append((method, args))
            return method(*args)

        return call


def attempt(
    call: Callable[..., object], args: tuple[object, ...], first: int, stop: int
) -> type[Exception] | None:
    """Call with allocations `first` .. `stop` - 1 failing (0: all later ones too)."""
    testcapi.set_nomemory(first, stop)
    try:
        call(*args)
        return None
    except Exception as error:
        return type(error)
    finally:
        testcapi.remove_mem_hooks()


def survives(call: Callable[..., object], args: tuple[object, ...]) -> int:
    """Let allocation 1, 2, .. fail, alone and with all later ones; return how many could."""
    want = attempt(call, args, MOST, 0)
    for first in range(MOST):
        one = attempt(call, args, first, first + 1)
        rest = attempt(call, args, first, 0)
        assert {one, rest} <= {MemoryError, want}, (call, first, one, rest)
        if rest is want:
            return first
    raise AssertionError(f"{call} makes more than {MOST} allocations")


def variants(args: tuple[object, ...]) -> Iterator[tuple[object, ...]]:
    """The arguments, and each of them replaced by something refused."""
    yield args
    yield args[:-1]
    for i, value in enumerate(args):
        wrong = 10**30 if isinstance(value, int) else "x" if value is None else np.float16([[1]])
        yield (*args[:i], wrong, *args[i + 1 :])


@pytest.mark.parametrize("name", sorted(CASES))
def test_methods_survive_each_failed_allocation(name: str, rng: np.random.Generator) -> None:
    recorder = Recorder()
    operands = CASES[name].make(rng, 3, 64)
    CASES[name].run(recorder, operands)
    calls = list({method.__name__: (method, args) for method, args in recorder.calls}.values())
    assert calls
    for method, args in calls:
        held = [a for a in args if isinstance(a, np.ndarray)]
        counts = [sys.getrefcount(a) for a in held]
        failed = [survives(method, variant) for variant in variants(args)]
        assert max(failed) > 0, method  # the errors at least need memory
        assert counts == [sys.getrefcount(a) for a in held]


def growth(work: Callable[[], object]) -> int:
    """Bytes of Python's that a second run keeps."""
    work()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_failed_allocations_lose_nothing() -> None:
    x, one = np.ones((4, 8), np.float32), np.ones(4, np.float32)
    k, args = C.Kernels(), (x, one, -8 * one, 7 * one, x.copy())
    bad = (x, 0 * one, *args[2:])

    def failing() -> None:
        for first in range(30):
            for call, what in ((k.fakequant_row, bad), (C.Kernels, (None, 2)), (C.Kernels, ("x",))):
                for stop in (0, first + 1):
                    testcapi.set_nomemory(first, stop)
                    try:
                        call(*what)
                    except (MemoryError, ValueError):
                        pass
                    finally:
                        testcapi.remove_mem_hooks()

    assert growth(failing) < 4000
    k.fakequant_row(*args)
    np.testing.assert_array_equal(args[4], x)


def test_objects_and_import_survive_each_failed_allocation() -> None:
    assert survives(C.Kernels, (None, 2)) > 0
    assert survives(repr, (C.Kernels(),)) > 0
    assert survives(getattr, (C.Kernels(), "isa")) > 0
    assert survives(C.Kernels, ("x",)) > 0
    spec = importlib.util.spec_from_file_location("cmibq._C", C.__file__)
    done = 0
    for first in range(4000):
        module = _imp.create_dynamic(spec)
        if attempt(_imp.exec_dynamic, (module,), first, 0) is MemoryError:
            continue
        done = first
        break
    assert done > 100
    assert module.ISAS == C.ISAS  # type: ignore[attr-defined]
    assert module.KERNELS == C.KERNELS  # type: ignore[attr-defined]


RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 64)).astype(np.float32)
ONE, ZERO = np.full(8, 0.25, np.float32), np.zeros(8, np.uint8)
CODES = RNG.integers(0, 16, (8, 64)).astype(np.uint8)
PACKED, SCALE = np.zeros((4, 32), np.uint8), np.full((4, 2), 1, np.float16)
CALLS: dict[str, Callable[[], Any]] = {
    "fakequant": lambda: arrays.fakequant(X, ONE, -8 * ONE * 4, 7 * ONE * 4),
    "minmax": lambda: arrays.minmax(X),
    "absmax": lambda: arrays.absmax(X, axis=1),
    "abssum": lambda: arrays.abssum(X),
    "qparams": lambda: arrays.qparams(X, bits=4),
    "qparams_mse": lambda: arrays.qparams_mse(X, bits=4),
    "codes": lambda: arrays.codes(X, ONE, ZERO, bits=4),
    "codes_token": lambda: arrays.codes_token(X),
    "decode": lambda: arrays.decode(CODES, ONE, ZERO),
    "fakequant_token": lambda: arrays.fakequant_token(X, bits=8),
    "pack": lambda: arrays.pack(CODES, bits=4),
    "unpack": lambda: arrays.unpack(CODES, bits=4, cols=128),
    "gemm": lambda: arrays.gemm(X, X.T),
    "gemm_s8": lambda: arrays.gemm_s8(CODES.view(np.int8), CODES.view(np.int8)),
    "qgemm": lambda: arrays.qgemm(X, PACKED, SCALE, None, bits=4),
    "scaleloss": lambda: arrays.scaleloss(X, X, np.ones((2, 64), np.float32), bits=4),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_and_workspaces_that_cannot_be_had(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = X.copy(), CODES.copy()
    want = CALLS[name]()
    left = 0

    def failing(true: Callable[..., Any]) -> Callable[..., Any]:
        def allocate(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise MemoryError("injected")
            return true(*args, **kwargs)

        return allocate

    for module in (np, memory):
        for function in ("empty", "zeros", "empty_like", "ones", "full"):
            if hasattr(module, function):
                monkeypatch.setattr(module, function, failing(getattr(module, function)))
    for count in range(1, 20):
        left = count
        try:
            got = CALLS[name]()
        except MemoryError:
            continue
        break
    assert count > 1, "nothing was allocated"
    np.testing.assert_equal(got, want)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(CODES, before[1])
