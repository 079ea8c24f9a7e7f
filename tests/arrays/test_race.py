from __future__ import annotations

import numpy as np
import pytest

from cmibq.arrays import race, search_scales
from cmibq.arrays.race import drawn_blocks
from cmibq.arrays.search import race_layers
from cmibq.errors import ConfigError, ModelError


def table_judge(table: np.ndarray, log: list[tuple[int, int]] | None = None):
    """Look losses up, and note how many candidates and blocks were asked for."""

    def judge(which: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        if log is not None:
            log.append((len(which), len(blocks)))
        return table[np.ix_(which, blocks)]

    return judge


def test_blocks_are_drawn_in_proportion_to_their_size(rng: np.random.Generator) -> None:
    size = rng.lognormal(0, 2, 50)
    met = np.bincount(drawn_blocks(size, 4096), minlength=50) / 4096
    np.testing.assert_allclose(met, size / size.sum(), atol=2 / 4096)
    quarters = drawn_blocks(np.ones(64), 4) // 16
    assert sorted(quarters) == [0, 1, 2, 3]
    assert drawn_blocks(np.ones(1), 5).tolist() == [0] * 5


def test_clear_winner_needs_one_round(rng: np.random.Generator) -> None:
    size = np.linspace(1, 2, 1000)
    log: list[tuple[int, int]] = []
    found = race(table_judge(np.outer([2.0, 1.0, 3.0], size), log), 3, size)
    assert (found.best, found.separated, log) == (1, True, [(3, 16)])
    assert found.finalists.tolist() == [1]
    np.testing.assert_allclose(found.losses, np.array([2, 1, 3]) * size.sum(), rtol=1e-12)


def test_what_cannot_be_separated_is_judged_on_everything(rng: np.random.Generator) -> None:
    size = np.ones(500)
    table = rng.exponential(1, (4, 500))
    table -= table.mean(1, keepdims=True) - [[1.0], [1.0], [1.0 - 1e-9], [5.0]]
    found = race(table_judge(table), 4, size, tolerance=0.0)
    assert found.best == 2
    assert not found.separated
    assert found.blocks.tolist()[:3] == [500] * 3
    assert found.blocks[3] < 500
    np.testing.assert_allclose(found.losses[2], table[2].sum(), rtol=1e-12)


def test_equal_candidates_stop_at_the_tolerance_and_the_first_wins() -> None:
    size = np.linspace(1, 5, 4096)
    log: list[tuple[int, int]] = []
    found = race(table_judge(np.outer(np.ones(3), size), log), 3, size)
    assert found.best == 0
    assert log == [(3, 16)]


def test_losses_that_are_not_finite_cannot_win(rng: np.random.Generator) -> None:
    size = np.ones(64)
    table = np.outer([0.5, 1.0, 2.0], size)
    table[0, :] = np.nan
    found = race(table_judge(table), 3, size)
    assert found.best == 1
    assert np.isnan(found.losses[0])
    assert race(table_judge(np.full((2, 64), np.inf)), 2, size).best == 0


def test_a_race_that_nobody_can_win_is_an_error() -> None:
    def judge(x: np.ndarray, w: np.ndarray, s: np.ndarray, **what: object) -> np.ndarray:
        return np.full((len(s), len(what["blocks"])), np.nan)  # type: ignore[arg-type]

    x = np.ones((64, 8), np.float32)
    with pytest.raises(ModelError, match="no candidate has a finite loss"):
        race_layers(judge, x, [x], np.ones((3, 8), np.float32), np.ones(64), 1)


def test_the_first_round_is_no_larger_than_the_data() -> None:
    table = np.arange(3.0)[:, None] + np.ones(40)
    assert race(table_judge(table), 3, np.ones(40), first=10**9).best == 0


def test_bad_options_are_named() -> None:
    judge = table_judge(np.ones((1, 4)))
    with pytest.raises(ConfigError, match="0 candidates"):
        race(judge, 0, np.ones(4))
    with pytest.raises(ConfigError, match="size holds values"):
        race(judge, 1, np.zeros(4))
    with pytest.raises(ConfigError, match="first is 2"):
        race(judge, 1, np.ones(4), first=2)
    with pytest.raises(ConfigError, match="tolerance 1"):
        race(judge, 1, np.ones(4), tolerance=1.0)


def tokens(kind: str, rng: np.random.Generator, count: int, cols: int) -> np.ndarray:
    """Make inputs with heavy tails over tokens, over sequences, or in a few massive tokens."""
    channel = np.exp(rng.normal(size=cols))
    x = rng.normal(size=(count, cols)) * channel
    if kind == "student":
        x *= np.sqrt(3 / rng.chisquare(3, (count, 1)))
    if kind == "sequences":
        of = np.arange(count) // 64
        x *= np.exp(0.5 * rng.normal(size=(of[-1] + 1, cols)) + rng.normal(size=(of[-1] + 1, 1)))[
            of
        ]
    if kind == "massive":
        x[rng.random(count) < 0.002, rng.integers(cols)] += 300 * channel.max()
    return x.astype(np.float32)


@pytest.mark.parametrize("loss", ["mae", "mse"])
@pytest.mark.parametrize("kind", ["student", "sequences", "massive"])
def test_regret_is_at_most_a_thousandth(kind: str, loss: str) -> None:
    """34 groups for each of three heavy-tailed families and two losses: 204 groups."""
    spent = []
    for seed in range(34):
        rng = np.random.default_rng([seed, len(kind), len(loss)])
        x = tokens(kind, rng, 4096, 64)
        w = (rng.normal(size=(32, 64)) * np.exp(0.3 * rng.normal(size=64))).astype(np.float32)
        what = {"bits": 3, "group_size": 32, "loss": loss}
        full = search_scales(x, w, **what)
        fast = search_scales(x, w, effort="race", **what)
        assert full.losses[fast.best_index] <= 1.001 * full.losses.min(), seed
        spent.append(fast.tokens.sum() / full.tokens.sum())
    assert np.mean(spent) < 0.75  # most is spent on near ties among the last two or three


def test_race_counts_only_tokens_with_weight(rng: np.random.Generator) -> None:
    x, w = (rng.normal(size=(n, 32)).astype(np.float32) for n in (400, 16))
    answer = np.zeros(400, bool)
    answer[rng.choice(400, 60, replace=False)] = True
    what = {"bits": 2, "group_size": 16, "answer_mask": answer}
    full, fast = search_scales(x, w, **what), search_scales(x, w, effort="race", **what)
    assert full.losses[fast.best_index] <= 1.001 * full.losses.min()
    alone = search_scales(np.ascontiguousarray(x[answer]), w, bits=2, group_size=16)
    assert full.losses[alone.best_index] <= 1.5 * full.losses.min()
    none = search_scales(x, w, effort="race", answer_mask=answer & False, bits=2, group_size=16)
    assert np.isfinite(none.losses[none.best_index])


def test_race_with_activations_and_several_weights(rng: np.random.Generator) -> None:
    x, w = (rng.normal(size=(n, 64)).astype(np.float32) for n in (3000, 32))
    x[:, 5] *= 30
    parts = [np.ascontiguousarray(w[:10]), np.ascontiguousarray(w[10:])]
    what = {"bits": 4, "group_size": 32, "symmetric": True, "act_bits": 8, "loss": "mse"}
    full, fast = search_scales(x, w, **what), search_scales(x, parts, effort="race", **what)
    assert full.losses[fast.best_index] <= 1.001 * full.losses.min()
    assert np.array_equal(fast.scales, search_scales(x, w, effort="race", **what).scales)


def test_unknown_effort_is_named(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 8)).astype(np.float32)
    with pytest.raises(ConfigError, match="effort is 'quick'; allowed are full, race"):
        search_scales(x, x, bits=4, group_size=8, effort="quick")
