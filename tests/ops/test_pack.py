from __future__ import annotations

import pytest
import torch

from cmibq.ops import pack as pack_op
from cmibq.ops import unpack
from cmibq.ops.pack import reference, reference_unpack


def some_codes(bits: int, cols: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(bits)
    return torch.randint(0, 2**bits, (5, cols), dtype=torch.uint8, generator=g)


@pytest.mark.parametrize("cols", [0, 1, 7, 8, 9, 33])
@pytest.mark.parametrize("bits", range(1, 9))
def test_kernels_equal_references_and_round_trip(bits: int, cols: int) -> None:
    codes = some_codes(bits, cols)
    packed = pack_op(codes, bits=bits)
    assert torch.equal(packed, reference(codes, bits))
    assert torch.equal(unpack(packed, bits=bits, cols=cols), codes)
    assert torch.equal(reference_unpack(packed, bits, cols), codes)


def test_hand_worked_stream() -> None:
    # 3 bits: 5, 1, 7 -> 101 100 111 read from the least significant bit: 1100 1101, 0000 0001.
    codes = torch.tensor([[5, 1, 7]], dtype=torch.uint8)
    assert pack_op(codes, bits=3).tolist() == [[0b11001101, 0b00000001]]


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_code_that_does_not_fit_is_refused(bits: int) -> None:
    codes = torch.zeros(2, 8, dtype=torch.uint8)
    codes[1, 3] = 2**bits
    with pytest.raises(ValueError, match=rf"codes\[11\] is {2**bits}; every code must be below"):
        pack_op(codes, bits=bits)


def test_a_row_of_the_wrong_size_is_refused() -> None:
    packed = torch.zeros(2, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"dimension B has 3, expected 2 \(ceil\(C \* bits / 8\)"):
        unpack(packed, bits=4, cols=4)


def test_opcheck_and_compile() -> None:
    codes = some_codes(3, 21)
    torch.library.opcheck(torch.ops.cmibq.pack.default, (codes, 3))
    torch.library.opcheck(torch.ops.cmibq.unpack.default, (reference(codes, 3), 3, 21))
    turn = torch.compile(
        lambda c: unpack(pack_op(c, bits=3), bits=3, cols=21), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(turn(codes), codes)
