from __future__ import annotations

import pytest

from cmibq.errors import ConfigError
from cmibq.quant import QuantGrid


@pytest.mark.parametrize("bits", range(1, 17))
def test_full_grids(bits: int) -> None:
    assert (QuantGrid(bits).low, QuantGrid(bits).high) == (0, 2**bits - 1)
    signed = QuantGrid(bits, signed=True)
    assert (signed.low, signed.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert signed.levels == 2**bits


def test_explicit_ends() -> None:
    assert QuantGrid(8, signed=True, qmin=-127).levels == 255
    assert QuantGrid(8, qmin=16, qmax=235).levels == 220


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"bits": 0}, "bits is 0; allowed are 1..16"),
        ({"bits": 17}, "bits is 17; allowed are 1..16"),
        ({"bits": 4, "qmax": 16}, r"codes 0..16 do not fit 4 bits; allowed are 0..15"),
        ({"bits": 4, "qmin": -1}, r"codes -1..15 do not fit 4 bits"),
        ({"bits": 4, "qmin": 5, "qmax": 5}, "with qmin < qmax"),
        ({"bits": 4, "signed": True, "qmin": -9}, r"allowed are -8..7"),
    ],
)
def test_what_is_refused(args: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantGrid(**args)
