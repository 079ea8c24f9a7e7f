"""Counts that survive growth, percentiles equal to NumPy's, clips equal to the plain formula."""

from __future__ import annotations

import numpy as np
import pytest

from cmibq.arrays import Histogram, klclip, percentile
from cmibq.runtime import kernels


def batches(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.normal(0, s, (7, 50)).astype(np.float32) for s in (1e-3, 1, 0.1, 40, 5)]


def test_counts_are_exact_after_growth(rng: np.random.Generator) -> None:
    parts = batches(rng)
    for size in (2, 3, 64, 2048):
        h = Histogram(size)
        for part in parts:
            h.update(part)
        seen = np.concatenate([p.ravel() for p in parts]).astype(np.float64)
        want, _ = np.histogram(seen, h.edges)
        assert h.counts.tolist() == want.tolist()
        assert h.total == seen.size
        assert (h.low, h.high) == (seen.min(), seen.max())


def test_order_and_merging_do_not_matter(rng: np.random.Generator) -> None:
    parts = batches(rng)
    whole, back = Histogram(100), Histogram(100)
    for part, other in zip(parts, parts[::-1], strict=True):
        whole.update(part)
        back.update(other)
    left, right = Histogram(100), Histogram(100)
    for part in parts[:2]:
        left.update(part)
    for part in parts[2:]:
        right.update(part)
    left.merge(right)
    right.merge(Histogram(100))
    for other in (back, left):
        assert other.counts.tolist() == whole.counts.tolist()
        assert other.edges.tolist() == whole.edges.tolist()


def test_constants_zeros_and_extremes() -> None:
    h = Histogram(16)
    h.update(np.zeros(5, np.float32))
    h.update(np.full(3, -0.0, np.float32))
    assert h.percentile(50) == 0.0
    h.update(np.array([3e38, -3e38, 1e-45], np.float32))
    assert h.total == 11
    assert Histogram(2).total == 0


def test_percentile_of_a_histogram_is_right_to_one_bin(rng: np.random.Generator) -> None:
    x = rng.normal(size=20000).astype(np.float32)
    h = Histogram(512)
    h.update(x)
    for q in (0, 0.1, 10, 50, 99.9, 100):
        assert abs(h.percentile(q) - np.percentile(x.astype(np.float64), q)) <= 2 * h.width


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 7), (5, 64), (2, 1000), (1, 70001)])
def test_percentiles_equal_numpy(shape: tuple[int, int], rng: np.random.Generator) -> None:
    x = rng.normal(0, 3, shape).astype(np.float32)
    x[rng.random(shape) < 0.3] = np.round(x[rng.random(shape) < 0.3].sum())  # many ties
    q = [0.0, 0.1, 25.0, 33.3, 50.0, 99.0, 99.9, 100.0]
    want = np.percentile(x.astype(np.float64), q, axis=1).T
    assert np.array_equal(percentile(x, q), want)
    assert np.array_equal(percentile(x, 99.9), want[:, 6])


def test_no_negative_zero() -> None:
    assert not np.signbit(percentile(np.full((1, 3), -0.0, np.float32), 50)).any()


def test_tiny_negative_numbers_stay_below_zero() -> None:
    h = Histogram(4)
    h.update(np.array([-1e-45] * 3 + [1e-45] * 2 + [0.0] * 20 + [6.0, -5.0], np.float32))
    assert h.counts[h.edges[:-1] < 0].sum() == 4
    assert h.counts[h.edges[:-1] >= 0].sum() == 23


def test_clips_keep_the_bulk(rng: np.random.Generator) -> None:
    x = rng.standard_t(2, size=(3, 20000)).astype(np.float32)
    x[2] = 0.0
    clip, least = klclip(x, 4)
    top = np.abs(x).max(1)
    assert (clip[:2] > 0).all()
    assert (clip[:2] < 0.5 * top[:2]).all()
    assert clip[2] == 0.0
    assert (least[:2] >= 0).all()


def test_a_clip_tells_apart_what_is_in_the_bulk(rng: np.random.Generator) -> None:
    """One bin has no divergence from any levels: it is no reason to clip everything else to it."""
    x = (rng.uniform(0.5, 1, (1, 4096)) * rng.choice([-1, 1], (1, 4096))).astype(np.float32)
    assert klclip(x, 8)[0][0] > 0.95
    assert klclip(x[:, :50], 4)[0][0] > 0.8


def test_zeros_do_not_hide_the_rest(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 4096)).astype(np.float32)
    x[1] = np.maximum(x[1], 0)
    clip, _ = klclip(x, 8, size=1024)
    assert clip[1] > 0.5 * x[1].max()


@pytest.mark.parametrize("exponent", [-149, -130, -122, -100, 100])
def test_clips_of_tiny_and_large_rows(exponent: int) -> None:
    x = np.ldexp(np.linspace(-1, 1, 999), exponent)[None].astype(np.float32)
    top = np.abs(x).max()
    assert 0.9 * top <= klclip(x, 4)[0][0] <= top


def test_a_call_that_fails_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    h = Histogram(8)
    h.update(np.array([1, 2], np.float32))
    before = (h.low, h.high, h.edges.tolist(), h.counts.tolist())

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    class Core:
        minmax_row, histogram = kernels().minmax_row, staticmethod(stop)
        histogram_workspace = kernels().histogram_workspace

    monkeypatch.setattr("cmibq.arrays.histogram.kernels", Core)
    with pytest.raises(KeyboardInterrupt):
        h.update(np.array([1000], np.float32))
    assert (h.low, h.high, h.edges.tolist(), h.counts.tolist()) == before


def test_refused() -> None:
    with pytest.raises(TypeError, match=r"size is 8\.0; give a number of bins"):
        Histogram(8.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 1048576"):
        Histogram(2**40)
    with pytest.raises(ValueError, match=r"percentages are a number or \[K\] numbers"):
        percentile(np.ones((1, 3), np.float32), [[1, 2]])
    with pytest.raises(ValueError, match="x has 1 dimensions, expected 2"):
        percentile(np.ones(3, np.float32), 50)
    bad = np.array([[1.0, np.nan], [1.0, 2.0]], np.float32)
    with pytest.raises(ValueError, match="every element must be finite"):
        Histogram().update(bad)
    with pytest.raises(ValueError, match=r"x\[0\] is nan; the row \(the index\) must be finite"):
        percentile(bad, 50)
    with pytest.raises(ValueError, match=r"x\[1\] is inf; the row"):
        klclip(np.array([[1.0], [np.inf]], np.float32), 8)
    with pytest.raises(ValueError, match=r"q is 101"):
        percentile(np.ones((1, 2), np.float32), 101)
    with pytest.raises(ValueError, match=r"x.shape\[1\] is 0"):
        percentile(np.ones((1, 0), np.float32), 50)
    with pytest.raises(ValueError, match=r"bits is 9; allowed are 2..8"):
        klclip(np.ones((1, 4), np.float32), 9)
    with pytest.raises(ValueError, match=r"levels\[0\] is 128; there must be at least"):
        klclip(np.ones((1, 4), np.float32), 8, size=64)
    with pytest.raises(ValueError, match="size is 1; a histogram has at least 2 bins"):
        Histogram(1)
    with pytest.raises(ValueError, match="has 4 bins, this one 8"):
        Histogram(8).merge(Histogram(4))
    with pytest.raises(ValueError, match=r"allowed are 0..100 of some"):
        Histogram().percentile(50)
