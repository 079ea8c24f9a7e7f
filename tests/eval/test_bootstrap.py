from __future__ import annotations

import itertools

import numpy as np
import pytest

from cmibq.errors import DataError
from cmibq.eval import PairedBootstrap


def brute_force_covariance(values: np.ndarray, clusters: list[tuple[int, ...]]) -> np.ndarray:
    """Sum over all pairs of items that share a cluster, the definition."""
    residual = (values - values.mean(0)) / len(values)
    total = np.zeros((values.shape[1],) * 2)
    for i, j in itertools.product(range(len(values)), repeat=2):
        if set(clusters[i]) & set(clusters[j]):
            total += np.outer(residual[i], residual[j])
    return total


def test_one_cluster_per_item_is_the_ordinary_bootstrap(rng: np.random.Generator) -> None:
    values = rng.random((400, 3))
    boot = PairedBootstrap(values, [(i,) for i in range(400)], resamples=20_000)
    np.testing.assert_allclose(boot.stderr, values.std(0) / 20, rtol=0.03)
    np.testing.assert_allclose(
        np.cov(boot.draws.T), np.cov(values.T) / 400, atol=4e-3 * values.var() / 20
    )


def test_equals_the_textbook_resampling_of_whole_clusters(rng: np.random.Generator) -> None:
    clusters = np.repeat(np.arange(50), 4)
    values = rng.normal(size=200) + rng.normal(size=50)[clusters]
    boot = PairedBootstrap(values[:, None], [(c,) for c in clusters], resamples=20_000)
    by_cluster = values.reshape(50, 4).mean(1)
    drawn = rng.integers(0, 50, (20_000, 50))
    assert boot.stderr[0] == pytest.approx(by_cluster[drawn].mean(1).std(), rel=0.03)
    assert boot.stderr[0] > 1.5 * values.std() / np.sqrt(200)


@pytest.mark.parametrize("per_item", [2, 3])
def test_several_clusters_count_each_sharing_pair_once(
    rng: np.random.Generator, per_item: int
) -> None:
    pictures = [tuple(rng.choice(60, per_item, replace=False).tolist()) for _ in range(150)]
    clusters = [c for c in pictures for _ in range(2)]
    effect = rng.normal(size=(60, 2))
    values = np.array([effect[list(c)].sum(0) for c in clusters]) + rng.normal(size=(300, 2))
    boot = PairedBootstrap(values, clusters, resamples=20_000)
    wanted = brute_force_covariance(values, clusters)
    np.testing.assert_allclose(np.cov(boot.draws.T), wanted, atol=0.04 * wanted.max())


def test_a_cluster_named_twice_counts_once(rng: np.random.Generator) -> None:
    values, clusters = rng.random((30, 1)), [(i % 7, i % 5 + 100) for i in range(30)]
    a = PairedBootstrap(values, clusters)
    b = PairedBootstrap(values, [(x, y, x) for x, y in clusters])
    assert np.array_equal(a.draws, b.draws)


def test_the_order_of_items_matters_by_chance_only(rng: np.random.Generator) -> None:
    values, clusters = rng.random((300, 1)), [(i % 70, i % 50 + 100) for i in range(300)]
    a = PairedBootstrap(values, clusters, resamples=20_000)
    b = PairedBootstrap(values[::-1], clusters[::-1], resamples=20_000)
    np.testing.assert_allclose(a.stderr, b.stderr, rtol=0.03)


def test_differences_are_paired(rng: np.random.Generator) -> None:
    first = rng.random(500)
    values = np.stack([first, first + 0.001 * rng.random(500)], 1)
    boot = PairedBootstrap(values, [(i,) for i in range(500)])
    gain = boot.interval(lambda m: m[..., 1] - m[..., 0])
    assert gain.stderr < boot.stderr[0] / 100
    assert gain.low < gain.value < gain.high


def test_seed_decides(rng: np.random.Generator) -> None:
    values, clusters = rng.random((20, 2)), [(i,) for i in range(20)]
    a, b, c = (PairedBootstrap(values, clusters, seed=s).draws for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_constant_columns_have_no_error() -> None:
    boot = PairedBootstrap(np.ones((6, 2)), [(i, i + 1) for i in range(6)])
    assert boot.stderr.tolist() == [0.0, 0.0]


def test_many_clusters_per_item_stay_conservative(rng: np.random.Generator) -> None:
    clusters = [tuple(rng.choice(40, 7, replace=False).tolist()) for _ in range(50)]
    values = rng.random((50, 1))
    assert PairedBootstrap(values, clusters).stderr[0] >= values.std() / np.sqrt(50)


def test_undefined_ratio_is_nan() -> None:
    boot = PairedBootstrap(np.ones((4, 1)), [(i,) for i in range(4)])
    result = boot.interval(lambda m: (m[..., 0] - 1) / (m[..., 0] - 1))
    assert all(np.isnan(result))


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        (np.zeros((0, 1)), [], "at least one item"),
        (np.zeros((2, 1)), [("a",)], "one row per item"),
        (np.zeros(2), [("a",), ("b",)], "one row per item"),
        (np.array([[0.0], [np.nan]]), [("a",), ("b",)], "item 1 is not finite"),
        (np.zeros((2, 1)), [("a",), ()], "item 1 has no cluster"),
    ],
)
def test_bad_input(values: np.ndarray, clusters: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PairedBootstrap(values, clusters)
