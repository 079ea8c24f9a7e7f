from __future__ import annotations

import numpy as np
import pytest
import torch

from cmibq.ops import codes as codes_op
from cmibq.ops import codes_token, decode, fakequant, fakequant_token, qparams
from cmibq.ops.codes import (
    reference,
    reference_decode,
    reference_fakequant_token,
    reference_token,
)
from tests.kernels.cases.base import nasty, some_nasty


def operands(bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(bits)
    x = torch.from_numpy(nasty(rng, 9, 33))
    scale = torch.from_numpy(rng.choice(np.float32([0.5, 0.1, 3.7e-3]), 9))
    return x, scale, torch.from_numpy(rng.integers(0, 2**bits, 9).astype(np.uint8))


@pytest.mark.parametrize("bits", range(1, 9))
def test_kernels_equal_references(bits: int) -> None:
    x, scale, zero = operands(bits)
    c = codes_op(x, scale, zero, bits=bits)
    assert torch.equal(c, reference(x, scale, zero, bits))
    assert torch.equal(decode(c, scale, zero), reference_decode(c, scale, zero))


@pytest.mark.parametrize("bits", range(1, 9))
def test_decoded_codes_equal_fakequant(bits: int) -> None:
    x, scale, zero = operands(bits)
    x = torch.nan_to_num(x)
    lo = 0 - zero.float()
    want = fakequant(x, scale, lo, lo + (2**bits - 1))
    assert torch.equal(decode(codes_op(x, scale, zero, bits=bits), scale, zero), want)


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_token_kernels_equal_references() -> None:
    x = torch.from_numpy(some_nasty(np.random.default_rng(1), 9, 33))
    for got, want in zip(codes_token(x), reference_token(x), strict=True):
        same(got, want)
    for bits in (2, 4, 8, 12, 16):
        same(fakequant_token(x, bits=bits), reference_fakequant_token(x, bits))


def test_token_codes_decode_to_the_fake_quantised_token() -> None:
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    c, scale = codes_token(x)
    assert torch.equal(c.float() * scale[:, None] + 0.0, fakequant_token(x, bits=8))


def test_what_becomes_of_nan_and_infinity() -> None:
    x = torch.tensor([[1.0, torch.nan, 2.0], [1.0, torch.inf, 2.0], [1.0, -2.0, 0.5]])
    c, scale = codes_token(x)
    assert c[:2].count_nonzero() == 0
    assert scale[0].isnan()
    assert scale[1].isinf()
    assert fakequant_token(x, bits=8)[:2].isnan().all()
    one = (torch.ones(3), torch.full((3,), 3, dtype=torch.uint8))
    assert codes_op(x, *one, bits=4).tolist() == [[4, 0, 5], [4, 15, 5], [4, 1, 3]]


@pytest.mark.parametrize(
    ("scale", "zero", "message"),
    [
        ([1.0, 0.0], [1, 1], r"scale\[1\] is 0; every scale must be finite"),
        ([1.0, 1.0], [1, 8], r"zero\[1\] is 8; every zero point must be a code"),
        ([1.0], [1, 1], "scale: dimension R is 1, expected 2"),
    ],
)
def test_what_is_refused(scale: list[float], zero: list[int], message: str) -> None:
    grid = (torch.tensor(scale), torch.tensor(zero, dtype=torch.uint8))
    with pytest.raises(ValueError, match=message):
        codes_op(torch.ones(2, 4), *grid, bits=3)


def test_opcheck() -> None:
    x, scale, zero = operands(4)
    c = codes_op(x, scale, zero, bits=4)
    torch.library.opcheck(torch.ops.cmibq.codes.default, (x, scale, zero, 4))
    torch.library.opcheck(torch.ops.cmibq.decode.default, (c, scale, zero))
    x = torch.randn(3, 8)
    torch.library.opcheck(torch.ops.cmibq.codes_token.default, (x,))
    torch.library.opcheck(torch.ops.cmibq.fakequant_token.default, (x.requires_grad_(), 8))


def test_token_gradient_is_that_of_the_identity() -> None:
    """The surrogate x + (rounding error, frozen) has gradient 1; gradcheck holds it to that."""
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    frozen = (reference_fakequant_token(x, 4) - x).detach()
    assert torch.autograd.gradcheck(lambda x: x + frozen, x)
    g = torch.randn_like(x)
    assert torch.equal(torch.autograd.grad(fakequant_token(x, bits=4), x, g)[0], g)


def test_compiled_equals_eager() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    compiled = torch.compile(
        lambda x: fakequant_token(x, bits=8), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), fakequant_token(x, bits=8))
    y = x.detach()
    grid = qparams(y, 4, 6)
    encode = torch.compile(
        lambda y, s, z: decode(codes_op(y, s, z, bits=4), s, z),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(encode(y, *grid), decode(codes_op(y, *grid, bits=4), *grid))
