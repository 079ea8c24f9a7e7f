"""Ctrl-C reaches a long call soon, and shapes without elements cost nothing."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cmibq.runtime import native

C = native()
ISAS = [C.ISAS[0], C.ISAS[-1]]
Call = Callable[[Any], object]
f32 = np.float32


class Interrupt(Exception):
    """What the handler of these tests raises."""


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


# Calls that last many seconds on any machine.
def scaleloss() -> Call:
    T, N, K, S = 256, 512, 512, 20000
    x, w, s = np.ones((T, K), f32), np.ones((N, K), f32), np.ones((S, K), f32)
    work = np.empty(C.Kernels().scaleloss_workspace(T, N, K, 1, 0, 0), np.uint8)
    rest = np.zeros(1, np.int64), np.empty((S, 1)), work
    return lambda k: k.scaleloss(x, w, np.ones(T), s, 4, 64, 0, 0, 0, 0, *rest)


def qgemm_f32() -> Call:
    M, N, K = 8192, 4096, 8192
    packed, scale = np.zeros((N, K // 2), np.uint8), np.full((N, 64), 0x3C00, np.uint16)
    x, out = np.ones((M, K), f32), np.empty((M, N), f32)

    def call(k: Any) -> object:
        work = np.empty(k.qgemm_workspace(M, N, K, 64, 4), np.uint8)
        return k.qgemm_f32(x, packed, 4, scale, None, None, out, work)

    return call


def qparams_mse_row() -> Call:
    x, scale, zero = np.ones((64, 65536), f32), np.empty(64, f32), np.empty(64, np.uint8)
    return lambda k: k.qparams_mse_row(x, 4, 0, 9999, 0.5, scale, zero, np.empty(64))


def project_row() -> Call:
    x = np.where(np.arange(1 << 25) % 2, f32(1e9), f32(-1e9))[None]  # hundreds of steps
    return lambda k: k.project_row(x, None, 2.0, 8.0, 3.7, x)


def round_bits_row() -> Call:
    b, out = np.zeros((1, 1 << 24), f32), np.empty((1, 1 << 24), np.uint8)
    return lambda k: k.round_bits_row(b, 0, 255, 255 << 24, out)  # 255 times one step for each


LONG = {f.__name__: f for f in (scaleloss, qgemm_f32, qparams_mse_row, project_row, round_bits_row)}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", LONG)
def test_a_signal_handler_ends_a_long_call(name: str, isa: str, threads: int) -> None:
    call, kernels = LONG[name](), C.Kernels(isa, threads)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    start = time.monotonic()
    with pytest.raises(Interrupt):
        call(kernels)
    assert time.monotonic() - start < 2  # usually 0.15


def test_ctrl_c_is_a_keyboard_interrupt_and_the_next_call_is_right() -> None:
    call, kernels = scaleloss(), C.Kernels(None, 2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # none in a background job
    timer = threading.Timer(0.1, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        call(kernels)
    timer.join()
    signal.signal(signal.SIGINT, before)
    x, one, out = np.full((300, 1000), 0.6, f32), np.ones(300, f32), np.empty((300, 1000), f32)
    kernels.fakequant_row(x, one, -8 * one, 7 * one, out)
    assert (out == 1).all()
    assert (x == f32(0.6)).all()


def moderate(kernels: Any) -> np.ndarray:
    """About a third of a second of work, whose result is known."""
    x = np.linspace(-1, 1, 8 * 4096, dtype=f32).reshape(8, 4096)
    scale, zero, err = np.empty(8, f32), np.empty(8, np.uint8), np.empty(8)
    kernels.qparams_mse_row(x, 4, 0, 9999, 0.5, scale, zero, err)
    return np.concatenate([scale, zero, err])


def test_handlers_that_return_change_nothing() -> None:
    calls = []
    want = moderate(C.Kernels(None, 1))
    signal.signal(signal.SIGALRM, lambda *_: calls.append(moderate(C.Kernels(None, 2))))
    signal.setitimer(signal.ITIMER_REAL, 0.06)
    for threads in (1, 2):
        np.testing.assert_array_equal(moderate(C.Kernels("scalar", threads)), want)
    assert len(calls) == 1
    np.testing.assert_array_equal(calls[0], want)


def test_calls_of_other_threads_go_on_while_the_main_thread_is_interrupted() -> None:
    want, got = moderate(C.Kernels(None, 1)), []
    other = threading.Thread(target=lambda: got.append(moderate(C.Kernels("scalar", 2))))
    other.start()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(Interrupt):
        scaleloss()(C.Kernels(None, 2))
    other.join()
    np.testing.assert_array_equal(got[0], want)


def test_rows_without_elements_are_free() -> None:
    k, rows = C.Kernels(None, 2), 2**50
    x, codes = np.empty((rows, 0), f32), np.empty((rows, 0), np.uint8)
    none, sums = np.empty(0, f32), np.empty(0)
    work = np.empty((k.fakequant_bwd_blocks(rows, 0), 0))
    k.fakequant_col(x, none, none, none, x.copy())
    k.fakequant_bwd_col(x, x.copy(), none, none, none, x.copy(), sums, work)
    k.fakequant_token(x, 8, x.copy())
    k.pack_row(codes, 4, codes.copy())
    k.unpack_row(codes, 4, codes.copy())
    k.minmax_col(x, none, none.copy())
    k.absmax_col(x, none)
    k.abssum_col(x, None, sums)
