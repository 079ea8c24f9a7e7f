"""Figures of attention hold the numbers they were given."""

from __future__ import annotations

import numpy as np
import pytest

from cmibq.eval.attention import Looks, View
from cmibq.report import attention_plots as plots

pytest.importorskip("matplotlib")


def some_looks(seed: int) -> Looks:
    rng = np.random.default_rng(seed)
    anchor = View(rng.integers(0, 256, (8, 8, 3), np.uint8), (2, 2), 1)
    augmenting = View(rng.integers(0, 256, (9, 9, 3), np.uint8), (3, 3), 1)
    weights = rng.dirichlet(np.ones(10), (2, 5)).astype(np.float32)
    entropy = rng.uniform(0, 2, (2, 4, 5)).astype(np.float32)
    return Looks(anchor, augmenting, (6, 12), weights, entropy)


def test_entropy_map_tells_every_head() -> None:
    looks = some_looks(0)
    ax = plots.plot_entropy_map(looks.mean_entropy(), layers=looks.layers, keys=10)
    told = [t.get_text() for t in ax.texts]
    assert told == [f"{x:.2f}" for x in looks.mean_entropy().ravel()]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["6", "12"]
    assert ax.images[0].get_clim() == (0, pytest.approx(np.log(10)))
    ax.figure.canvas.draw()


def test_overlay_is_redder_where_more_is_looked_at() -> None:
    looks = some_looks(1)
    weights, _ = looks.of_patch(2)
    ax = plots.plot_overlay(looks.augmenting, weights)
    tint = np.asarray(ax.images[-1].get_array())
    np.testing.assert_allclose(tint[..., 3], 0.85 * weights / weights.max(), rtol=1e-6)
    assert (ax.images[0].get_extent() == np.array((0, 3, 3, 0))).all()


def test_rows_of_patches() -> None:
    before, after = some_looks(2), some_looks(3)
    panels = plots.plot_looks(before, [0, 3], 0)
    assert len(panels) == 4
    assert panels[1].get_title(loc="left") or panels[1].get_title()
    assert panels[2].patches[0].get_xy() == (1, 1)
    panels = plots.plot_before_after(before, after, [1])
    assert [p.get_xlabel()[:5] for p in panels] == ["", "up to", "up to", "at mo"]
    (one, _), (two, _) = before.of_patch(1), after.of_patch(1)
    np.testing.assert_allclose(np.asarray(panels[3].images[-1].get_array()), two - one)
    panels[0].figure.canvas.draw()
