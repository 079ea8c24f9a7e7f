from __future__ import annotations

import numpy as np
import pytest

from cmibq.arrays import scaleloss
from cmibq.errors import ConfigError


def operands(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    x, w = (rng.normal(size=(n, 16)).astype(np.float32) for n in (5, 7))
    return x, w, np.exp(rng.normal(size=(3, 16))).astype(np.float32)


@pytest.mark.parametrize("act_bits", [None, 8])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("rows", [7, 32])
def test_what_is_not_finite_shows_in_the_loss(
    act_bits: int | None, bad: float, where: int, rows: int, rng: np.random.Generator
) -> None:
    x, _, s = operands(rng)
    args = x, rng.normal(size=(rows, 16)).astype(np.float32), s
    args[where][2, 3] = bad
    loss = scaleloss(*args, bits=4, group_size=8, symmetric=True, act_bits=act_bits)
    assert not np.isfinite(loss).any()


def test_a_scale_that_overflows_float16_loses(rng: np.random.Generator) -> None:
    x, w, s = operands(rng)
    s[1] = 1e8
    loss = scaleloss(x, w, s, bits=4)
    assert np.isnan(loss).tolist() == [False, True, False]
    assert np.isfinite(scaleloss(x, w, s, bits=4, half_scale=False)).all()


def test_nothing_costs_nothing(rng: np.random.Generator) -> None:
    x, w, s = operands(rng)
    assert np.array_equal(scaleloss(x[:0], w, s, bits=4), np.zeros(3))
    assert np.array_equal(scaleloss(x, w[:0], s, bits=4, act_bits=8), np.zeros(3))
    assert scaleloss(x, w, s[:0], bits=4).shape == (0,)


def test_weights_that_fit_their_grid_cost_nothing(rng: np.random.Generator) -> None:
    w = rng.integers(-7, 8, (4, 32)).astype(np.float32)
    w[:, ::8] = 7
    x, s = rng.normal(size=(9, 32)).astype(np.float32), np.full((1, 32), 0.5, np.float32)
    assert scaleloss(x, w, s, bits=4, group_size=8, symmetric=True, loss="mse") == 0


def test_errors_name_the_argument(rng: np.random.Generator) -> None:
    x, w, s = operands(rng)
    with pytest.raises(ConfigError, match="loss is 'l2'; allowed are mae, mse"):
        scaleloss(x, w, s, bits=4, loss="l2")
    with pytest.raises(ConfigError, match="group_size is 5; it must divide the 16"):
        scaleloss(x, w, s, bits=4, group_size=5)
    with pytest.raises(ValueError, match=r"bits is 9, allowed are 1\.\.8"):
        scaleloss(x, w, s, bits=9)
    with pytest.raises(ValueError, match="symmetric grid needs bits >= 2"):
        scaleloss(x, w, s, bits=1, symmetric=True)
    with pytest.raises(ValueError, match="token: dimension T is 4, expected 5"):
        scaleloss(x, w, s, bits=4, token_weight=np.ones(4))
    s[1, 2] = 0
    with pytest.raises(ValueError, match=r"scale\[18\] is 0"):
        scaleloss(x, w, s, bits=4)
