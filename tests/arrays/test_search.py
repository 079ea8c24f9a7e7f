from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cmibq.arrays import scaleloss, search_scales
from cmibq.arrays.candidates import argbest, candidates, ratios
from cmibq.arrays.search import token_weights
from cmibq.errors import ConfigError, ModelError
from tests.golden.loader import load

BLOCK, SEARCH, AWQ = load("block"), load("block_search"), load("awq")
LINEARS = {"o": "o_proj", "down": "down_proj"}
# Losses are sums of float32 errors; the published ones were also summed in float32.
LOSS, SCALE = 1e-5, 1e-5


def f32(name: str) -> np.ndarray:
    return BLOCK[name].astype(np.float32)


def published(group: str, config: str) -> dict[str, object]:
    """Return the keywords that stand for one published configuration."""
    bits, loss, weighting = config.split("/")
    kind = "attn" if group == "o" else "mlp"
    masks: dict[str, object] = {}
    if weighting != "plain":
        masks["answer_mask"] = BLOCK["answer_mask"]
    if weighting == "reweight":
        masks |= {
            "vision_mask": BLOCK["vision_mask"],
            "vision_weight": float(BLOCK[f"ratio/{kind}"]),
        }
    act = 8 if bits.endswith("a8") else None
    group_size = 0 if act else 32
    return {"bits": int(bits[1]), "group_size": group_size, "act_bits": act, "loss": loss, **masks}


@pytest.mark.parametrize("group", LINEARS)
@pytest.mark.parametrize("name", [k[4:-7] for k in SEARCH if k[:3] == "mha" and k[-6:] == "losses"])
def test_reference_equals_the_published_search(group: str, name: str) -> None:
    row = 1 if group == "o" else 3
    x, w = f32(f"x/{group}"), f32(f"weight/{LINEARS[group]}")
    found = search_scales(x, w, variant="reference", **published(group, name))
    np.testing.assert_allclose(found.losses, SEARCH[f"mha/{name}/losses"][row], rtol=LOSS)
    assert found.best_index == SEARCH[f"mha/{name}/best"][row]
    assert found.ratio == found.best_index / 20
    want = BLOCK[f"grid/{group}"][found.best_index]
    np.testing.assert_allclose(found.scales, want, rtol=SCALE)


@pytest.mark.parametrize("bits", [3, 4])
def test_reference_mse_equals_llm_awq(bits: int) -> None:
    for row, group in ((1, "o"), (3, "down")):
        x, w = f32(f"x/{group}"), f32(f"weight/{LINEARS[group]}")
        found = search_scales(x, w, variant="reference", **published(group, f"w{bits}/mse/plain"))
        np.testing.assert_allclose(found.losses, AWQ[f"w{bits}/losses"][row], rtol=LOSS)
        assert found.best_index == AWQ[f"w{bits}/best"][row]


@pytest.mark.parametrize("group", ["qkv", "o", "gate_up", "down"])
def test_reference_candidates_equal_the_published(group: str) -> None:
    a = np.abs(f32(f"x/{group}")).reshape(-1, BLOCK[f"x/{group}"].shape[-1]).mean(0)
    got = candidates(a, a, 20, "reference")
    np.testing.assert_allclose(got, BLOCK[f"grid/{group}"], rtol=SCALE)


def planted(rng: np.random.Generator, k: int = 128, n: int = 96, t: int = 256):
    """Return a layer, and the same layer with a quarter of the channels scaled by 2..64."""
    gain = np.exp(0.3 * rng.normal(size=k))
    x = (rng.normal(size=(t, k)) @ (np.eye(k) + rng.normal(size=(k, k)) / k**0.5)) * gain
    w = rng.normal(size=(n, k)) / k**0.5
    f = np.ones(k)
    f[rng.permutation(k)[: k // 4]] = np.exp2(rng.uniform(1, 6, k // 4))
    plain, out = (x, w), (x * f, w / f)
    return *(tuple(a.astype(np.float32) for a in pair) for pair in (plain, out)), f


@pytest.mark.parametrize("loss", ["mae", "mse"])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (3, 64), (2, 32)])
def test_planted_outliers_are_undone(
    bits: int, group_size: int, loss: str, rng: np.random.Generator
) -> None:
    for _ in range(3):
        plain, out, _ = planted(rng)
        what = {"bits": bits, "group_size": group_size, "loss": loss}
        found = search_scales(*out, **what)
        oracle = search_scales(*plain, **what).losses[0]
        rtn = found.losses[0]
        closed = (rtn - found.losses[found.best_index]) / (rtn - oracle)
        assert closed > 0.95, f"gap closed {closed:.3f}"


def test_default_does_not_notice_a_function_preserving_rescaling(rng: np.random.Generator) -> None:
    plain, out, f = planted(rng)
    a, b = (search_scales(*pair, bits=3, group_size=64) for pair in (plain, out))
    # Scales rounded to float16 tie at other places; the candidates are the same.
    np.testing.assert_allclose(b.losses[1:], a.losses[1:], rtol=2e-2)
    mean = [np.abs(v).mean(0) for v in plain]
    one = candidates(*mean, 20)[1:] * f
    two = candidates(mean[0] * f, mean[1] / f, 20)[1:]
    np.testing.assert_allclose(two / two[:, :1], one / one[:, :1], rtol=1e-5)


@pytest.mark.parametrize("act_bits", [None, 8, 6])
@pytest.mark.parametrize("variant", ["default", "reference"])
def test_never_worse_than_rounding(
    variant: str, act_bits: int | None, rng: np.random.Generator
) -> None:
    for _ in range(5):
        plain, out, _ = planted(rng, 64, 16, 32)
        for pair in (plain, out):
            what = {"bits": 4, "group_size": 32, "act_bits": act_bits, "variant": variant}
            found = search_scales(*pair, **what)
            assert found.losses[found.best_index] == found.losses.min() <= found.losses[0]


def test_several_weights_count_as_one_stacked(rng: np.random.Generator) -> None:
    _, (x, w), _ = planted(rng)
    one = search_scales(x, w, bits=3, group_size=64)
    parts = [np.ascontiguousarray(p) for p in (w[:40], w[40:])]
    two = search_scales(x, parts, bits=3, group_size=64)
    np.testing.assert_allclose(two.losses, one.losses, rtol=1e-12)
    np.testing.assert_allclose(two.scales, one.scales, rtol=1e-6)


def test_first_loss_is_rounding_to_nearest(rng: np.random.Generator) -> None:
    _, (x, w), _ = planted(rng)
    found = search_scales(x, w, bits=3, group_size=64, symmetric=True)
    ones = np.ones((1, 128), np.float32)
    raw = scaleloss(x, w, ones, bits=3, group_size=64, symmetric=True)
    assert found.losses[0] == pytest.approx(raw[0] / x.shape[0] / len(w), rel=1e-12)


def test_dead_channels_and_columns_do_not_disturb(rng: np.random.Generator) -> None:
    _, (x, w), _ = planted(rng)
    x[:, 3], w[:, 9] = 0, 0
    found = search_scales(x, w, bits=3, group_size=64)
    assert np.isfinite(found.scales).all()
    assert (found.scales > 0).all()
    assert found.losses[found.best_index] < 0.6 * found.losses[0]


@pytest.mark.parametrize("effort", ["full", "race"])
@pytest.mark.parametrize("factor", [0.0, 1e-42, 1e-37, 1e36])
@pytest.mark.parametrize("where", ["x", "w"])
def test_dead_and_extreme_layers_are_searched(
    where: str, factor: float, effort: str, rng: np.random.Generator
) -> None:
    x, w = (rng.normal(size=(n, 64)).astype(np.float32) for n in (40, 16))
    (x if where == "x" else w)[:] *= np.float32(factor)
    if where == "w" and factor > 1:
        w[:] /= np.float32(1e33)  # float16 scales reach 65504
    found = search_scales(x, w, bits=3, group_size=16, effort=effort)
    assert np.isfinite(found.scales).all()
    assert (found.scales > 0).all()
    if factor == 0:
        assert found.best_index == 0  # nothing to gain: no scaling


def test_no_tokens_are_named() -> None:
    x = np.zeros((0, 8), np.float32)
    with pytest.raises(ConfigError, match="x holds no tokens; give calibration data"):
        search_scales(x, np.ones((2, 8), np.float32), bits=3, group_size=0)


def test_weights_of_tokens_without_a_mask_are_uniform() -> None:
    assert np.array_equal(token_weights(None, None, None, "mae", 4), np.full(4, 0.25))
    none = np.zeros(4, bool)
    assert np.array_equal(token_weights(none, none, 0.5, "mse", 4), np.full(4, 0.25))
    assert token_weights(None, None, None, "mae", 0).shape == (0,)


def test_ratios_reach_one_unless_published() -> None:
    assert ratios(20)[-1] == 1
    assert ratios(20, "reference")[-1] == 0.95


def test_best_is_the_first_and_never_nan() -> None:
    assert argbest([2.0, 1.0, 1.0, float("nan")]) == 1
    for lost in ([float("nan")] * 3, [float("inf"), float("nan")]):
        with pytest.raises(ModelError, match="no candidate has a finite loss"):
            argbest(lost)


def test_arrays_that_do_not_fit_are_named_as_they_were_given(rng: np.random.Generator) -> None:
    (x, w), _, _ = planted(rng, 16, 8, 4)
    wrong: list[tuple[Any, Any, str]] = [
        (x.astype(np.float64), w, "x is float64; give a float32 array"),
        (x, [w, w.astype(np.float16)], r"w\[1\] is float16"),
        (x.tolist(), w, "x is list"),
        (np.asfortranarray(x), w, "x is not C-contiguous"),
        (
            x,
            np.repeat(w, 2, 1)[:, ::2],
            r"w is not C-contiguous; give numpy.ascontiguousarray\(w\)",
        ),
        (x, w[0], r"w is \[16\] and x \[4, 16\]"),
        (x, [w, w[:, :8].copy()], r"w\[1\] is \[8, 8\] and x"),
        (x, [], "w is empty"),
    ]
    for inputs, weights, told in wrong:
        with pytest.raises(ConfigError, match=told):
            search_scales(inputs, weights, bits=4, group_size=8)


def test_errors_name_the_argument(rng: np.random.Generator) -> None:
    (x, w), _, _ = planted(rng, 16, 8, 4)
    what = {"bits": 4, "group_size": 8}
    mask = np.ones(4, bool)
    with pytest.raises(ConfigError, match="variant is 'fast'; allowed are default, reference"):
        search_scales(x, w, variant="fast", **what)
    with pytest.raises(ConfigError, match="n_grid is 1"):
        search_scales(x, w, n_grid=1, **what)
    with pytest.raises(ConfigError, match="loss is 'huber'"):
        search_scales(x, w, loss="huber", **what)
    with pytest.raises(ConfigError, match="vision_weight None"):
        search_scales(x, w, vision_mask=mask, answer_mask=mask, **what)
    with pytest.raises(ConfigError, match="answer_mask"):
        search_scales(x, w, vision_mask=mask, vision_weight=1.0, **what)
    with pytest.raises(ConfigError, match=r"answer_mask is bool \(3,\)"):
        search_scales(x, w, answer_mask=mask[:3], **what)
    with pytest.raises(ConfigError, match="group_size is 7"):
        search_scales(x, w, bits=4, group_size=7)
    x[0, 0] = np.nan
    with pytest.raises(ModelError, match="look for NaN or inf"):
        search_scales(x, w, **what)
