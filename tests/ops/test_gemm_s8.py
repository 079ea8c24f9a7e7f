from __future__ import annotations

import numpy as np
import pytest
import torch

from cmibq import arrays
from cmibq.ops.gemm_s8 import gemm_s8, reference
from cmibq.runtime import native
from tests.kernels.cases.gemm_s8 import dyadic

C = native()


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def codes(rows: int, cols: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, (rows, cols)).astype(np.int8)


# By rows (a small B), by blocks, streamed results, several blocks of inputs, few rows.
SHAPES = [(300, 200, 600), (2000, 1100, 40), (300, 700, 900), (70, 40, 4200), (1, 1500, 700)]


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_every_way_level_and_thread_count(m: int, n: int, k: int) -> None:
    a, b = codes(m, k, 0), codes(n, k, 1)
    rng = np.random.default_rng(2)
    bias, multiplier, shift = (
        rng.integers(low, high, n).astype(np.int32)
        for low, high in ((-(2**31), 2**31), (0, 2**31), (38, 50))
    )
    # Exact: the sums stay below 2**53.
    want = (a.astype(np.float64) @ b.T.astype(np.float64)).astype(np.int64)
    assert np.array_equal(arrays.gemm_s8(a, b), want)
    made = arrays.gemm_s8(a, b, bias=bias, multiplier=multiplier, shift=shift)
    few = np.s_[:: max(1, m // 20)]
    scaled = dyadic(want[few] + bias, multiplier, shift)
    assert np.array_equal(made[few], np.clip(scaled, -128, 127).astype(np.int8))
    for isa in C.ISAS[1:]:
        for threads in (1, 2, 3, 7):
            kernels = C.Kernels(isa, threads)
            work = np.empty(kernels.gemm_s8_workspace(m, n, k, 1), np.uint8)
            got = np.empty_like(made)
            kernels.gemm_s8(a, b, bias, multiplier, shift, 0, -128, 127, None, got, work)
            assert np.array_equal(got, made), (isa, threads)
            work = np.empty(kernels.gemm_s8_workspace(m, n, k, 0), np.uint8)
            sums = np.empty((m, n), np.int32)
            kernels.gemm_s8(a, b, None, None, None, 0, -128, 127, sums, None, work)
            assert np.array_equal(sums, want), (isa, threads)


def test_the_largest_sum_and_the_largest_number_of_inputs() -> None:
    most = 131071
    a = np.full((3, most), -128, np.int8)
    b = np.stack([a[0], np.full(most, 127, np.int8)])
    for isa in C.ISAS:
        kernels, out = C.Kernels(isa), np.empty((3, 2), np.int32)
        work = np.empty(kernels.gemm_s8_workspace(3, 2, most, 0), np.uint8)
        kernels.gemm_s8(a, b, ints(16383, 0), None, None, 0, -128, 127, out, None, work)
        assert out.tolist() == [[2**31 - 1, -128 * 127 * most]] * 3
    more = np.zeros((1, most + 1), np.int8)
    with pytest.raises(ValueError, match="131072 inputs; int32 sums are exact for at most 131071"):
        arrays.gemm_s8(more, more)
    with pytest.raises(ValueError, match="131072 inputs, at most 131071"):
        gemm_s8(torch.from_numpy(more), torch.from_numpy(more))
    with pytest.raises(ValueError, match="split the inputs"):
        C.Kernels().gemm_s8(more, more, None, None, None, 0, 0, 0, ints(0)[None], None, work)


def test_dyadic_ties_and_extremes_by_hand() -> None:
    a = np.array([[1], [2], [3], [-1], [-3], [127], [-128]], np.int8)
    one = np.ones((1, 1), np.int8)

    def made(m: int, e: int, **more: int) -> list[int]:
        return arrays.gemm_s8(a, one, multiplier=ints(m), shift=ints(e), **more)[:, 0].tolist()

    assert made(1, 0) == [1, 2, 3, -1, -3, 127, -128]
    assert made(1, 1) == [0, 1, 2, 0, -2, 64, -64]
    assert made(3, 1) == [2, 3, 4, -2, -4, 127, -128]
    assert made(2**31 - 1, 62) == [0] * 7
    assert made(2**31 - 1, 0, lo=-5, hi=6) == [6, 6, 6, -5, -5, 6, -5]
    assert made(1, 1, zero_point=100, hi=110) == [100, 101, 102, 100, 98, 110, 36]
    assert made(-1, 1) == [0, -1, -2, 0, 2, -64, 64]
    low = arrays.gemm_s8(
        a[-1:], one, bias=ints(-(2**31)), multiplier=ints(-(2**31)), shift=ints(62)
    )
    assert low.item() == 1  # -(2**31 + 128) / -(2**31)


def test_empty_sizes() -> None:
    a, b = np.zeros((3, 0), np.int8), np.zeros((2, 0), np.int8)
    assert arrays.gemm_s8(a, b, bias=ints(5, -7)).tolist() == [[5, -7]] * 3
    assert arrays.gemm_s8(a[:0], b).shape == (0, 2)
    made = arrays.gemm_s8(a, b, multiplier=ints(1, 1), shift=ints(0, 0), zero_point=9)
    assert made.tolist() == [[9, 9]] * 3


def test_bad_arguments() -> None:
    x, out = codes(4, 8, 0), np.zeros((4, 4), np.int32)
    m = np.ones(4, np.int32)
    with pytest.raises(ValueError, match="dimension K is 7, expected 8"):
        arrays.gemm_s8(x, x[:, :7])
    with pytest.raises(ValueError, match="1 and 2 dimensions"):
        arrays.gemm_s8(x[0], x)
    with pytest.raises(ValueError, match="a has stride 2 along its inputs"):
        arrays.gemm_s8(x[:, ::2], x[:, :4])
    with pytest.raises(ValueError, match="multiplier and shift go together"):
        arrays.gemm_s8(x, x, multiplier=m)
    with pytest.raises(ValueError, match=r"shift\[2\] is 63"):
        arrays.gemm_s8(x, x, multiplier=m, shift=ints(0, 0, 63, 0))
    with pytest.raises(ValueError, match=r"bias\[1\] is"):
        arrays.gemm_s8(x, x, bias=ints(0, 2**31 - 1, 0, 0))
    with pytest.raises(ValueError, match="bounds must be"):
        arrays.gemm_s8(x, x, multiplier=m, shift=m, lo=3, hi=2)
    with pytest.raises(ValueError, match="zero"):
        arrays.gemm_s8(x, x, multiplier=m, shift=m, zero_point=128)
    with pytest.raises(TypeError, match="out has dtype int32, expected native int8"):
        arrays.gemm_s8(x, x, multiplier=m, shift=m, out=out)
    with pytest.raises(ValueError, match="work has 1, expected"):
        C.Kernels().gemm_s8(x, x, None, None, None, 0, 0, 0, out, None, np.empty(1, np.uint8))
    with pytest.raises(ValueError, match="or none of them and sums"):
        C.Kernels().gemm_s8(x, x, None, None, None, 0, 0, 0, None, None, np.empty(1, np.uint8))
    t = torch.from_numpy(x)
    with pytest.raises(TypeError, match=r"expected torch.int8"):
        gemm_s8(t.int(), t)
    with pytest.raises(ValueError, match=r"expected \[M, K\] and \[N, K\]"):
        gemm_s8(t, t[:, :3])
    with pytest.raises(ValueError, match="go together"):
        gemm_s8(t, t, shift=torch.from_numpy(m))


@pytest.mark.parametrize("requantised", [False, True])
def test_torch_op_equals_reference(requantised: bool) -> None:
    a, b = (torch.from_numpy(codes(n, 40, n)) for n in (9, 5))
    bias, m, e = (
        torch.from_numpy(x) for x in (ints(*range(5)), ints(*[9, 7] * 2, 3), ints(*range(8, 13)))
    )
    grid = (m, e) if requantised else (None, None)
    args = (a[:, 3:], b[:, 3:], bias, *grid, 2, -90, 80)
    want = reference(*args)
    out = torch.empty_like(want)
    kinds = dict(zip(("bias", "multiplier", "shift"), (bias, *grid), strict=True))
    got = gemm_s8(*args[:2], **kinds, zero_point=2, lo=-90, hi=80, out=out)
    assert got is out
    assert got.dtype is (torch.int8 if requantised else torch.int32)
    assert torch.equal(got, want)
    turned = gemm_s8(a[:, 3:].mT.contiguous().mT, b[:, 3:], **kinds, zero_point=2, lo=-90, hi=80)
    assert torch.equal(turned, want)
    torch.library.opcheck(torch.ops.cmibq.gemm_s8.default, args)
