"""Every kernel: scalar against the oracle, each ISA against scalar, threads bit-equal."""

from __future__ import annotations

import numpy as np
import pytest

from cmibq.runtime import native
from tests.kernels.cases import CASES

KERNELS = dict(native().KERNELS)
ISAS = native().ISAS
SHAPES = [(1, n) for n in (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97)]
SHAPES += [(0, 4), (3, 33), (17, 64), (65, 97), (5, 40000)]


def bits(a: np.ndarray) -> np.ndarray:
    """View the bytes, with every NaN made the same NaN."""
    a = np.where(np.isnan(a), np.array(np.nan, a.dtype), a) if a.dtype.kind == "f" else a
    return np.ascontiguousarray(a).view(np.uint8)


def close(got: np.ndarray, want: np.ndarray, rtol: float, name: str) -> None:
    if rtol == 0:
        assert np.array_equal(bits(got), bits(want.astype(got.dtype))), name
    else:
        scale = np.nanmax(np.abs(want[np.isfinite(want)]), initial=0.0)
        np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * scale, err_msg=name)


def test_every_kernel_has_a_case() -> None:
    assert set(KERNELS) == set(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_scalar_equals_the_oracle(name: str, rng: np.random.Generator) -> None:
    case = CASES[name]
    if case.oracle is None:
        pytest.fail(f"{name} has no oracle")
    for rows, cols in SHAPES:
        operands = case.make(rng, rows, cols)
        got = case.run(native().Kernels("scalar"), operands)
        want = case.oracle(operands)
        for key in want:
            close(got[key], want[key], case.rtol, f"{name}.{key} [{rows}, {cols}]")


@pytest.mark.parametrize("isa", ISAS[1:])
@pytest.mark.parametrize("name", sorted(CASES))
def test_isa_equals_scalar(name: str, isa: str, rng: np.random.Generator) -> None:
    case = CASES[name]
    for rows, cols in SHAPES:
        operands = case.make(rng, rows, cols)
        want = case.run(native().Kernels("scalar"), operands)
        got = case.run(native().Kernels(isa), operands)
        for key in want:
            rtol = 0.0 if KERNELS[name] == "EXACT" else case.rtol
            close(got[key], want[key], rtol, f"{name}.{key} {isa} [{rows}, {cols}]")


@pytest.mark.parametrize("name", sorted(CASES))
def test_threads_do_not_change_a_bit(name: str, rng: np.random.Generator) -> None:
    case = CASES[name]
    for rows, cols in [(65, 97), (257, 1030)]:
        operands = case.make(rng, rows, cols)
        want = case.run(native().Kernels(None, 1), operands)
        for threads in (2, 3, 7):
            got = case.run(native().Kernels(None, threads), operands)
            for key in want:
                close(got[key], want[key], 0.0, f"{name}.{key} threads={threads}")


@pytest.mark.parametrize("name", sorted(CASES))
def test_inputs_stay_untouched_and_may_be_read_only(name: str, rng: np.random.Generator) -> None:
    case = CASES[name]
    operands = dict(case.make(rng, 5, 33))
    before = {k: v.copy() for k, v in operands.items()}
    for v in operands.values():
        v.flags.writeable = False
    case.run(native().Kernels(), operands)
    for k, v in operands.items():
        assert np.array_equal(bits(v), bits(before[k])), k
