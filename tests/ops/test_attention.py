"""The fusion block against torch's own attention, hand-worked values and its own reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cmibq import arrays
from cmibq.errors import ConfigError
from cmibq.ops.attention import Attended, attention

NAMES = ("xq", "xk", "wq", "wk", "wv", "wo", "bq", "bk", "bv", "bo", "gamma", "beta")
Tensors = dict[str, torch.Tensor]


def operands(
    batch: int = 2,
    lq: int = 37,
    lk: int = 70,
    width: int = 24,
    source: int = 20,
    dtype: torch.dtype = torch.float32,
    inner: int | None = None,
) -> Tensors:
    g = torch.Generator().manual_seed(0)
    e = inner or width

    def normal(*shape: int, gain: float = 1.0) -> torch.Tensor:
        made = torch.randn(*shape, generator=g, dtype=torch.float64) * gain
        return made.to(dtype).requires_grad_()

    made = {"xq": normal(batch, lq, width), "xk": normal(batch, lk, source)}
    for name, n, k in (("q", e, width), ("k", e, source), ("v", e, source), ("o", width, e)):
        made[f"w{name}"] = normal(n, k, gain=k**-0.5)
        made[f"b{name}"] = normal(n)
    return made | {"gamma": normal(width), "beta": normal(width)}


def call(t: Tensors, **options: object) -> Attended:
    rest = {n: t[n] for n in t if n not in NAMES[:6]}
    return attention(*(t[n] for n in NAMES[:6]), **rest, **({"heads": 4} | options))


def through_torch(t: Tensors, heads: int, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Return (out, weights) of nn.MultiheadAttention with the same parameters."""
    width = t["xq"].shape[-1]
    mha = torch.nn.MultiheadAttention(
        width, heads, batch_first=True, kdim=t["xk"].shape[-1], vdim=t["xk"].shape[-1]
    ).to(t["xq"].dtype)
    weights = dict(zip(("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"), strict=True))
    state = {f"{n}_weight": t[w] for n, w in weights.items()}
    state["in_proj_bias"] = torch.cat([t["bq"], t["bk"], t["bv"]])
    state |= {"out_proj.weight": t["wo"], "out_proj.bias": t["bo"]}
    mha.load_state_dict(state)
    fused, weights = mha(t["xq"], t["xk"], t["xk"], key_padding_mask=mask)
    return [F.layer_norm(t["xq"] + fused, (width,), t["gamma"], t["beta"]), weights]


@pytest.mark.parametrize("masked", [False, True])
def test_equals_multihead_attention(masked: bool) -> None:
    t = operands()
    mask = torch.arange(70).expand(2, 70) % 5 == 1 if masked else None
    want, weights = through_torch(t, 4, mask)
    got = call(t, key_mask=mask, need_weights=True, need_entropy=True)
    torch.testing.assert_close(got.out, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.weights, weights, rtol=1e-5, atol=1e-6)
    assert got.entropy is not None
    assert got.entropy.shape == (2, 4, 37)
    assert bool((got.entropy > 0).all())
    assert bool((got.entropy < math.log(70)).all())


def test_equals_scaled_dot_product_attention() -> None:
    t = operands(source=24)
    q, k, v = (F.linear(x, t[f"w{n}"]).view(2, -1, 4, 6).transpose(1, 2)
               for n, x in (("q", t["xq"]), ("k", t["xk"]), ("v", t["xk"])))  # fmt: skip
    want = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 37, 24)
    got = attention(*(t[n] for n in NAMES[:6]), heads=4, residual=False)
    torch.testing.assert_close(got.out, F.linear(want, t["wo"]), rtol=1e-5, atol=1e-5)


def test_by_hand() -> None:
    """Scores 0 and ln 3: weights 1/4 and 3/4; entropy ln 4 - 3/4 ln 3."""
    one = torch.ones(1, 1)
    xq, xk = torch.ones(1, 1, 1), torch.tensor([[[0.0], [math.log(3.0)]]])
    got = attention(
        xq, xk, one, one, one, one, heads=1, residual=False, need_entropy=True, need_weights=True
    )
    torch.testing.assert_close(got.weights, torch.tensor([[[0.25, 0.75]]]))
    torch.testing.assert_close(got.out, torch.full((1, 1, 1), 0.75 * math.log(3.0)))
    entropy = math.log(4.0) - 0.75 * math.log(3.0)
    torch.testing.assert_close(got.entropy, torch.full((1, 1, 1), entropy))


@pytest.mark.parametrize("precision", ["float32", "bfloat16x2", "bfloat16"])
@pytest.mark.parametrize(("heads", "recompute"), [(1, True), (3, False), (3, True)])
def test_gradients_follow_float64(precision: str, heads: int, recompute: bool) -> None:
    """Bound: roundings of the operands, times the largest gradient (scores are of order one)."""
    bound = {"float32": 2e-6, "bfloat16x2": 1e-4, "bfloat16": 3e-2}[precision]
    t, exact = operands(lk=97), operands(lk=97, dtype=torch.float64)
    g = torch.randn(2, 37, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = torch.autograd.grad(
        call(t, heads=heads, precision=precision, recompute=recompute).out,
        list(t.values()),
        g.float(),
    )
    want = torch.autograd.grad(call(exact, heads=heads).out, list(exact.values()), g)
    scale = max(float(w.abs().max()) for w in want)
    for name, a, b in zip(t, got, want, strict=True):
        assert float((a - b).abs().max()) <= bound * scale, name


@pytest.mark.parametrize("precision", ["float32", "bfloat16x2"])
def test_gradients_of_many_rows(precision: str) -> None:
    """Sums over 900 queries and 1200 keys of several batches go in more than one piece."""
    bound = {"float32": 2e-6, "bfloat16x2": 1e-4}[precision]
    sizes = {"batch": 3, "lq": 300, "lk": 400}
    t, exact = operands(**sizes), operands(**sizes, dtype=torch.float64)
    g = torch.randn(3, 300, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = torch.autograd.grad(
        call(t, heads=3, precision=precision).out, list(t.values()), g.float()
    )
    want = torch.autograd.grad(call(exact, heads=3).out, list(exact.values()), g)
    scale = max(float(w.abs().max()) for w in want)
    for name, a, b in zip(t, got, want, strict=True):
        assert float((a - b).abs().max()) <= bound * scale, name


def test_reference_gradient() -> None:
    t = operands(1, 3, 4, 4, 3, torch.float64, inner=6)
    mask = torch.tensor([[False, True, False, False]])
    assert torch.autograd.gradcheck(
        lambda *a: call(dict(zip(t, a, strict=True)), heads=2, key_mask=mask).out,
        tuple(t.values()),
    )


@pytest.mark.parametrize("residual", [False, True])
def test_without_norm_and_only_some_gradients(residual: bool) -> None:
    t = {n: v.detach() for n, v in operands().items() if n not in ("gamma", "beta", "bk")}
    for name in ("wq", "bo"):
        t[name].requires_grad_()
    exact = {n: v.detach().double().requires_grad_(v.requires_grad) for n, v in t.items()}
    call(t, residual=residual).out.square().sum().backward()
    call(exact, residual=residual).out.square().sum().backward()
    for name in t:
        assert (t[name].grad is None) == (name not in ("wq", "bo"))
        if t[name].grad is not None:
            torch.testing.assert_close(t[name].grad, exact[name].grad.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("lq", "lk", "heads", "width"),
    [(1, 1, 1, 8), (1, 70, 2, 26), (33, 1, 1, 72), (65, 33, 2, 256), (2, 0, 2, 8), (0, 3, 1, 8)],
)
def test_edges(lq: int, lk: int, heads: int, width: int) -> None:
    t = operands(1, lq, lk, width)
    exact = {n: v.detach().double().requires_grad_() for n, v in t.items()}
    got, want = call(t, heads=heads), call(exact, heads=heads)
    torch.testing.assert_close(got.out, want.out.float(), rtol=1e-4, atol=2e-5)
    got.out.sum().backward()
    want.out.sum().backward()
    for name in t:
        a, b = t[name].grad, exact[name].grad
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=5e-5)


def test_large_scores_and_rows_without_keys() -> None:
    t = operands(lq=5, lk=9)
    t["xk"] = (t["xk"].detach() * 1e4).requires_grad_()
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[1] = True
    got = call(t, key_mask=mask, need_weights=True, need_entropy=True)
    assert bool(got.out.isfinite().all())
    got.out.square().sum().backward()
    assert all(bool(v.grad.isfinite().all()) for v in t.values())
    assert float(got.weights[1].abs().max()) == 0 == float(got.entropy[1].abs().max())
    alone = F.layer_norm(t["xq"][1] + t["bo"], (24,), t["gamma"], t["beta"])
    torch.testing.assert_close(got.out[1], alone)
    assert float(t["xk"].grad[1].abs().max()) == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16x2"])
def test_floats_next_to_the_largest_are_no_infinities(precision: str) -> None:
    x, eye = torch.full((1, 1, 2), 3.4e38), torch.eye(2)  # would round to infinity
    x[0, 0, 1] *= -1
    got = attention(
        x * 0.0, x, eye, eye, eye, eye, heads=1, residual=False, precision=precision
    ).out
    torch.testing.assert_close(got, x, rtol=1e-4, atol=0)


def test_nan_stays_in_its_row() -> None:
    t = {n: v.detach() for n, v in operands(lq=40).items()}
    t["xq"][0, 3, 5] = math.nan
    got = call(t).out
    assert bool(got[0, 3].isnan().all())
    got[0, 3] = 0
    assert bool(got.isfinite().all())


def test_bfloat16_and_autocast() -> None:
    t = operands()
    want = through_torch(t, 4)[0]
    halved = {n: v.detach().bfloat16().requires_grad_() for n, v in t.items()}
    got = call(halved)
    assert got.out.dtype == torch.bfloat16
    torch.testing.assert_close(got.out.float(), want, rtol=0.05, atol=0.1)
    got.out.sum().backward()
    assert halved["wq"].grad is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = call(t).out
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, call(t, precision="bfloat16").out, rtol=0, atol=0)


def test_with_and_without_gradients_alike() -> None:
    t = operands()
    with torch.no_grad():
        alone = call(t).out
    assert torch.equal(alone, call(t).out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_into_memory_that_is_there(dtype: torch.dtype) -> None:
    t = operands(dtype=dtype)
    with torch.no_grad():
        want, out = call(t, need_weights=True), torch.full((2, 37, 24), 7, dtype=dtype)
        got = call(t, need_weights=True, out=out)
        assert got.out is out
        assert torch.equal(out, want.out)
        assert got.weights is not None
        with pytest.raises(ValueError, match=r"out.* (expected|has shape)"):
            call(t, out=out[:, :36].contiguous())
        with pytest.raises(TypeError, match=r"out.* (expected|has dtype)"):
            call(t, out=out.half())
    with pytest.raises(ConfigError, match="out is given where a gradient is recorded"):
        call(t, out=out)


def test_halves_of_the_heads_alike() -> None:
    """Above 4 MiB of keys, inference holds k and v of half of the heads at a time."""
    t = operands(1, 3, 1024, 8, 8, inner=1024)
    with torch.no_grad():
        alone = call(t, heads=2).out
    assert torch.equal(alone, call(t, heads=2).out)


@pytest.mark.parametrize("save", [False, True])
def test_opcheck(save: bool) -> None:
    t = operands(1, 3, 4, 4, 3)
    order = ("wq", "bq", "wk", "bk", "wv", "bv", "wo", "bo", "gamma", "beta")
    given = (t["xq"], t["xk"], None, None, *(t[n] for n in order), None)
    args = (*given, 2, True, 1e-5, 3, save, True, True)
    torch.library.opcheck(torch.ops.cmibq.attention.default, args)


def test_compiled_equals_eager() -> None:
    t = operands()
    compiled = torch.compile(lambda t: call(t).out, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(t), call(t).out)
    compiled(t).sum().backward()
    assert t["wv"].grad is not None


def test_what_is_refused() -> None:
    t = operands()
    with pytest.raises(ConfigError, match="precision is 'low'; allowed are bfloat16, bfloat16x2"):
        call(t, precision="low")
    with pytest.raises(ConfigError, match="gamma and beta"):
        call({n: v for n, v in t.items() if n != "beta"})
    with pytest.raises(ConfigError, match=r"xq has shape \[5, 24\]; give \[B, L, D\]"):
        call(t | {"xq": torch.zeros(5, 24)})
    with pytest.raises(ValueError, match="E modulo heads"):
        call(t, heads=5)
    with pytest.raises(ValueError, match="dimension C has 21, expected 20"):
        call(t | {"xk": torch.zeros(2, 70, 21)})
    with pytest.raises(ValueError, match="contiguous"):
        call(t | {"xq": torch.zeros(37, 2, 24).transpose(0, 1)})
    with pytest.raises(ValueError, match="width of the output"):
        call({n: v for n, v in t.items() if n not in ("gamma", "beta", "bo")} | {"wo": t["wo"][:3]})


def test_what_the_numpy_form_refuses() -> None:
    x, eye = np.ones((1, 1, 2), np.float32), np.eye(2, dtype=np.float32)
    with pytest.raises(ConfigError, match=r"xk has shape \[1, 2\]; give \[B, L, D\]"):
        arrays.attention(x, x[0], eye, eye, eye, eye, heads=1)
    mask: Any = np.zeros((1, 1), np.uint8)
    with pytest.raises(TypeError, match="key_mask has dtype uint8, expected bool"):
        arrays.attention(x, x, eye, eye, eye, eye, heads=1, key_mask=mask)


def test_a_gradient_of_the_gradient_is_refused() -> None:
    x, eye = torch.randn(1, 3, 4, requires_grad=True), torch.eye(4)
    (g,) = torch.autograd.grad(
        attention(x, x, eye, eye, eye, eye, heads=2).out.sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="gradient of its gradient"):
        g.sum().backward()
