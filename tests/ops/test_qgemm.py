from __future__ import annotations

import numpy as np
import pytest
import torch

from cmibq import arrays
from cmibq.ops import codes_token, pack, qgemm, qgemm_s8
from cmibq.ops.qgemm import reference, reference_s8
from cmibq.runtime import kernels

BITS = range(2, 9)
SHAPES = [(1, 16, 8, 1), (3, 5, 7, 1), (33, 70, 96, 3), (40, 130, 520, 1), (5, 64, 1024, 8)]
Weight = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]


def weight(n: int, k: int, groups: int, bits: int, *, symmetric: bool = False) -> Weight:
    g = torch.Generator().manual_seed(bits + k)
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, generator=g)
    zero = torch.randint(0, 2**bits, (n, groups), dtype=torch.uint8, generator=g)
    scale = (torch.rand(n, groups, generator=g) + 0.01).to(torch.float16)
    bias = torch.randn(n, generator=g) if symmetric else None
    return pack(codes, bits=bits), scale, None if symmetric else pack(zero, bits=bits), bias


def tokens(m: int, k: int) -> torch.Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(k))


def in_double(x: torch.Tensor, w: Weight, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the product in float64 and the sum of the magnitudes that were added."""
    packed, scale, zero, bias = w
    exact = None if bias is None else bias.double()
    size = None if bias is None else bias.abs().double()
    eye = torch.eye(x.shape[1], dtype=torch.float64)
    dense = reference(eye, packed, scale.double(), zero, None, bits)  # [K, N]
    linear = torch.nn.functional.linear
    return linear(x.double(), dense.T, exact), linear(x.double().abs(), dense.T.abs(), size)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_error_is_within_the_bound_of_the_contract(bits: int, symmetric: bool) -> None:
    """A chain of n FMAs errs by n half-ulps of the sum of magnitudes, a later sum by one more."""
    for m, n, k, groups in SHAPES:
        x, w = tokens(m, k), weight(n, k, groups, bits, symmetric=symmetric)
        want, size = in_double(x, w, bits)
        steps = min(k, 128) + k / 128 + 2
        error = (qgemm(x, *w, bits=bits).double() - want).abs()
        assert bool((error <= 1.01 * steps * 2.0**-24 * size).all()), (m, n, k)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_integer_form_equals_its_reference_bit_for_bit(bits: int, symmetric: bool) -> None:
    for m, n, k, groups in SHAPES:
        w = weight(n, k, groups, bits, symmetric=symmetric)
        x, scale = codes_token(tokens(m, k))
        assert torch.equal(qgemm_s8(x, scale, *w, bits=bits), reference_s8(x, scale, *w, bits))


def test_hand_worked_numbers() -> None:
    codes = torch.tensor([[0, 1, 2, 3, 0, 0, 0, 3, 3, 3, 3, 3, 3, 3, 3, 3]], dtype=torch.uint8)
    scale = torch.tensor([[0.5, 2.0]], dtype=torch.float16)
    zero = pack(torch.tensor([[1, 3]], dtype=torch.uint8), bits=2)
    x = torch.arange(1.0, 17.0)[None]
    # group 0: codes - 1 = -1 0 1 2 -1 -1 -1 2 -> -1 + 3 + 8 - 5 - 6 - 7 + 16 = 8; group 1 is zero
    w = (pack(codes, bits=2), scale, zero, torch.tensor([0.25]))
    assert qgemm(x, *w, bits=2).tolist() == [[4.25]]
    assert qgemm_s8(x.to(torch.int8), torch.tensor([3.0]), *w, bits=2).tolist() == [[12.25]]


@pytest.mark.parametrize("isa", [None, "scalar"])
def test_a_row_does_not_depend_on_the_other_rows(
    isa: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isa:
        monkeypatch.setenv("CMIBQ_ISA", isa)
        assert kernels().isa == isa
    w, x = weight(70, 520, 5, 3), tokens(70, 520)
    together, codes, scale = qgemm(x, *w, bits=3), *codes_token(x)
    integers = qgemm_s8(codes, scale, *w, bits=3)
    for m in range(0, 70, 7):
        assert torch.equal(qgemm(x[m : m + 1], *w, bits=3), together[m : m + 1])
        one = qgemm_s8(codes[m : m + 1], scale[m : m + 1], *w, bits=3)
        assert torch.equal(one, integers[m : m + 1])


def test_empty_operands() -> None:
    w = weight(4, 8, 1, 4, symmetric=True)
    assert qgemm(torch.ones(0, 8), *w, bits=4).shape == (0, 4)
    none = (torch.empty(4, 0, dtype=torch.uint8), w[1], None, w[3])
    assert torch.equal(qgemm(torch.ones(2, 0), *none, bits=4), w[3].expand(2, 4))
    codes = torch.ones(2, 0, dtype=torch.int8)
    assert torch.equal(qgemm_s8(codes, torch.ones(2), *none, bits=4), w[3].expand(2, 4))


def test_nan_and_infinity_stay_in_their_row() -> None:
    w, x = weight(9, 16, 2, 4), tokens(3, 16)
    clean = qgemm(x, *w, bits=4)
    x[1, 3], x[1, 5] = float("nan"), float("inf")
    dirty = qgemm(x, *w, bits=4)
    assert dirty[1].isnan().all()
    assert torch.equal(dirty[::2], clean[::2])
    assert qgemm_s8(*codes_token(x), *w, bits=4)[1].isnan().all()


def test_largest_codes_do_not_overflow() -> None:
    """The longest group of extreme codes: every int32 sum fits, only just."""
    k = 65793
    packed = torch.full((1, k), 255, dtype=torch.uint8)
    x = torch.full((2, k), -128, dtype=torch.int8)
    zero = torch.zeros(1, 1, dtype=torch.uint8)
    one = torch.ones(1, 1, dtype=torch.float16)
    out = qgemm_s8(x, torch.ones(2), packed, one, zero, bits=8)
    assert out.tolist() == [[float(np.float32(-128 * 255 * k))]] * 2
    wide = torch.zeros(1, k + 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at most 65793 long"):
        qgemm_s8(x[:, :1].expand(2, k + 1).contiguous(), torch.ones(2), wide, one, zero, bits=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "bits is 1, allowed are 2..8"),
        ({"bits": 3}, r"dimension B has 8, expected 6 \(ceil\(K \* bits / 8\)"),
        ({"x": torch.ones(2, 15)}, "2 groups for rows of 15 inputs"),
        ({"scale": torch.ones(4, 4).half()}, "4 groups for rows of 16 inputs"),
        ({"scale": torch.ones(4, 0).half()}, "G is 0, allowed are 1"),
        ({"scale": torch.zeros(4, 2).half()}, r"scale\[0\] is 0; every scale must"),
        ({"scale": -torch.ones(4, 2).half()}, r"scale\[0\] is -1"),
        ({"scale": torch.tensor([[1, 1]] * 3 + [[1, torch.nan]]).half()}, r"scale\[7\] is nan"),
        ({"scale": torch.tensor([[1, torch.inf]] * 4).half()}, r"scale\[1\] is inf"),
        ({"zero": torch.zeros(4, 2, dtype=torch.uint8)}, r"dimension Z has 2, expected 1"),
        ({"zero": torch.zeros(3, 1, dtype=torch.uint8)}, "dimension N is 3, expected 4"),
        ({"bias": torch.ones(5)}, "dimension N is 5, expected 4"),
        ({"x": torch.ones(16, 2).T}, "x must be C-contiguous"),
    ],
)
def test_bad_operands_are_refused(change: dict, message: str) -> None:
    packed, scale, zero, _ = weight(4, 16, 2, 4)
    args = {"x": torch.ones(2, 16), "packed": packed, "scale": scale, "zero": zero, "bits": 4}
    with pytest.raises(ValueError, match=message):
        qgemm(**(args | change))


def test_other_dtypes_use_the_reference() -> None:
    w, x = weight(6, 16, 2, 4), tokens(3, 16)
    got = qgemm(x.to(torch.bfloat16), *w, bits=4)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), qgemm(x, *w, bits=4), rtol=0.1, atol=0.5)


def test_numpy_form_equals_the_op(rng: np.random.Generator) -> None:
    w, x = weight(9, 24, 3, 5), tokens(4, 24)
    packed, scale, zero, _ = (None if t is None else t.numpy() for t in w)
    want = qgemm(x, *w, bits=5)
    out = np.empty((4, 9), np.float32)
    assert arrays.qgemm(x.numpy(), packed, scale, zero, bits=5, out=out) is out
    np.testing.assert_array_equal(out, want.numpy())
    codes, xscale = codes_token(x)
    got = arrays.qgemm_s8(codes.numpy(), xscale.numpy(), packed, scale, zero, bits=5)
    np.testing.assert_array_equal(got, qgemm_s8(codes, xscale, *w, bits=5).numpy())
    with pytest.raises(TypeError, match="scale has dtype float32, expected float16"):
        arrays.qgemm(x.numpy(), packed, scale.astype(np.float32), zero, bits=5)


def test_opcheck_and_compile() -> None:
    w, x = weight(9, 24, 3, 5, symmetric=True), tokens(4, 24)
    torch.library.opcheck(torch.ops.cmibq.qgemm.default, (x, *w, 5))
    torch.library.opcheck(torch.ops.cmibq.qgemm_s8.default, (*codes_token(x), *w, 5))
    both = torch.compile(
        lambda x: (qgemm(x, *w, bits=5), qgemm_s8(*codes_token(x), *w, bits=5)),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(both(x)[0], qgemm(x, *w, bits=5))
    assert torch.equal(both(x)[1], qgemm_s8(*codes_token(x), *w, bits=5))
