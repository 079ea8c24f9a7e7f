from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmibq.errors import ConfigError
from cmibq.ops import noise_key
from cmibq.ops.channel_bits import TABLE, channel_bits, offset, reference, reference_backward


def operands(
    groups: int = 1, rows: int = 12, cols: int = 70, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(rows, cols, generator=g, dtype=dtype) * 2
    low = -torch.rand(cols, generator=g, dtype=dtype) - 0.5
    high = torch.rand(cols, generator=g, dtype=dtype) + 0.5
    bits = torch.rand(groups, cols, generator=g, dtype=dtype) * 8
    bits[:, : min(9, cols)] = torch.arange(min(9, cols), dtype=dtype)
    tables = torch.rand(cols, TABLE, generator=g, dtype=dtype) * 9
    return [x, low, high, bits, tables]


def straight_through(x: Tensor, low: Tensor, high: Tensor, bits: Tensor, tables: Tensor) -> list:
    """The formulas with their gradients as torch derives them, element by element."""
    rows, cols = x.shape
    bits = bits.repeat_interleave(rows // bits.shape[0], 0)
    whole = bits.detach().floor().clamp(max=7)
    share, found = bits - whole, []
    for b in (whole, whole + 1):
        top = 2.0**b - 1
        step = (high - low) / top.clamp(min=1)
        v = (x - low) / step
        u = torch.where(v < 0, torch.zeros_like(v), torch.where(v > top, top, v))
        q = u + (u.round() - u).detach()
        level = torch.where(b > 0, low + q * step, (low + high) / 2)
        flat, code = tables.flatten(), q.detach().long()
        start = torch.arange(cols) * TABLE + offset(b)
        held, last = flat.detach(), (2 ** b.long()) - 1
        slope = held[start + (code + 1).minimum(last)] - held[start + (code - 1).clamp(min=0)]
        found.append((level, flat[start + code] + slope / 2 * (q - q.detach())))
    (y0, r0), (y1, r1) = found
    return [y0 + share * (y1 - y0), (r0 + share * (r1 - r0)).sum(1)]


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_gradients_are_the_straight_through_ones(groups: int) -> None:
    leaves = [t.requires_grad_() for t in operands(groups, dtype=torch.float64)]
    g = torch.Generator().manual_seed(4)
    outs = [torch.randn(12, 70, generator=g).double(), torch.randn(12, generator=g).double()]
    want = straight_through(*leaves)
    grads = torch.autograd.grad(want, leaves, outs)
    got = channel_bits(*leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(torch.autograd.grad(got, leaves, outs), grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("rated", [False, True])
@pytest.mark.parametrize("key", [None, noise_key(1, 2, 3)])
def test_kernel_equals_reference(groups: int, rated: bool, key: Tensor | None) -> None:
    x, low, high, bits, tables = operands(groups)
    given = [t.requires_grad_() for t in (x, low, high, bits)]
    given += [tables.requires_grad_()] if rated else []
    g = torch.Generator().manual_seed(5)
    gy, grate = torch.randn(x.shape, generator=g), torch.randn(12, generator=g)
    y, rate = channel_bits(*given, key=key, samples=3)
    rest = (*given, *([] if rated else [None]), key, 3)
    want = [t.detach() for t in reference(*rest)]
    assert torch.equal(y, want[0])
    torch.testing.assert_close(rate, want[1])
    got = torch.autograd.grad([y, rate], given, [gy, grate], allow_unused=True)
    plain = [t.detach() if isinstance(t, Tensor) else t for t in rest]
    for a, b in zip(got, reference_backward(gy, grate, *plain), strict=False):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_bits_and_tables_equal_finite_differences() -> None:
    x, low, high, bits, tables = operands(2, 4, 3, torch.float64)
    bits = torch.tensor([[0.5, 2.25, 7.75], [3.5, 1.5, 6.5]], dtype=torch.float64)
    leaves = (bits.requires_grad_(), tables.requires_grad_())
    assert torch.autograd.gradcheck(lambda b, t: channel_bits(x, low, high, b, t), leaves)


def test_hand_worked() -> None:
    x, low, high = torch.tensor([[0.3, 0.8]]), torch.zeros(2), torch.ones(2)
    x.requires_grad_()
    bits = torch.tensor([[1.0, 1.5]], requires_grad=True)
    tables = torch.zeros(2, TABLE)
    tables[0, 1:3] = torch.tensor([1.0, 3.0])  # one bit: codes 0 and 1
    tables[1, 1:7] = torch.tensor([1.0, 3.0, 5.0, 5.0, 5.0, 9.0])
    y, rate = channel_bits(x, low, high, bits, tables)
    # column 1: 0.8 is code 1 of one bit (1.0, 3 bits), code 2 of two (2/3, 5 bits), half of each
    torch.testing.assert_close(y.detach(), torch.tensor([[0.0, (1.0 + 2 / 3) / 2]]))
    torch.testing.assert_close(rate.detach(), torch.tensor([1.0 + 4.0]))
    gx, gbits = torch.autograd.grad(rate.sum(), [x, bits])
    # slopes of the rate per step: (3 - 1) / 2; (3 - 1) / 2 and (9 - 5) / 2, over steps 1, 1, 1/3
    torch.testing.assert_close(gx, torch.tensor([[1.0, 0.5 * 1.0 + 0.5 * 2.0 * 3]]))
    torch.testing.assert_close(gbits, torch.tensor([[-1.0, 5.0 - 3.0]]))


def test_whole_bits_give_levels_exactly() -> None:
    x, low, high, _, _ = operands(rows=64)
    bits = torch.arange(70.0)[None] % 9
    y, _ = channel_bits(x, low, high, bits)
    top = 2**bits - 1
    step = (high - low) / top.clamp(min=1)
    q = ((x - low) / step).clamp(min=0).minimum(top).round()
    assert torch.equal(y, torch.where(bits > 0, low + q * step, (low + high) / 2))


def test_random_rounding_is_right_in_the_mean() -> None:
    x = torch.full((4096, 3), 0.3)
    low, high = torch.zeros(3), torch.ones(3)
    bits = torch.tensor([[1.0, 2.0, 3.5]])
    y, _ = channel_bits(x, low, high, bits, key=noise_key(9, 0), samples=64)
    assert (y.mean(0) - 0.3).abs().max() < 4 * 0.5 / 64
    halves = [
        channel_bits(x[:2048], low, high, bits, key=noise_key(9, 0, f), samples=32)[0]
        for f in (0, 32)
    ]
    assert torch.equal(torch.cat(halves), y)


def test_nan_and_channels_without_a_range() -> None:
    x = torch.tensor([[float("nan"), 1.0], [0.5, 1.0]], requires_grad=True)
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])
    y, rate = channel_bits(x, low, high, torch.full((1, 2), 2.5), torch.ones(2, TABLE))
    (gx,) = torch.autograd.grad(y[1].sum() + rate.sum(), x)
    assert y[0, 0].isnan()
    assert rate.tolist() == [2.0, 2.0]
    assert torch.equal(y[:, 1].detach(), torch.ones(2))
    assert gx.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_come_back_as_float(dtype: torch.dtype) -> None:
    x, low, high, bits, _ = operands()
    x = x.to(dtype).requires_grad_()
    y, _ = channel_bits(x, low, high, bits)
    y.sum().backward()
    assert y.dtype is torch.float32
    assert x.grad is not None
    assert x.grad.dtype is dtype


def test_compiled_equals_eager() -> None:
    leaves = [t.requires_grad_() for t in operands(3)]
    compiled = torch.compile(channel_bits, fullgraph=True, backend="aot_eager")
    results = []
    for f in (channel_bits, compiled):
        y, rate = f(*leaves, key=noise_key(1, 1), samples=2)
        results.append([y, rate, *torch.autograd.grad(y.square().sum() + rate.sum(), leaves)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_opcheck() -> None:
    leaves = [t.requires_grad_() for t in operands(3)]
    torch.library.opcheck(torch.ops.cmibq.channel_bits.default, (*leaves, noise_key(1, 1), 3))
    torch.library.opcheck(torch.ops.cmibq.channel_bits.default, (*leaves[:4], None, None, 0))


def test_backward_saves_nothing_but_its_operands() -> None:
    leaves = [t.requires_grad_() for t in operands(3)]
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        channel_bits(*leaves)
    assert sorted(saved) == sorted(t.data_ptr() for t in leaves)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": torch.full((5, 70), 2.0)}, "divides"),
        ({"low": torch.zeros(69)}, "low"),
        ({"tables": torch.zeros(70, 12)}, "tables"),
        ({"samples": 5, "key": noise_key(0, 0)}, "samples"),
    ],
)
def test_refuses_shapes(change: dict[str, object], message: str) -> None:
    names = ("x", "low", "high", "bits", "tables")
    with pytest.raises(ConfigError, match=message):
        channel_bits(**{**dict(zip(names, operands(), strict=True)), **change})


@pytest.mark.parametrize(("name", "value"), [("low", 3.0), ("high", float("nan")), ("bits", 8.5)])
def test_refuses_values(name: str, value: float) -> None:
    given = dict(zip(("x", "low", "high", "bits"), operands(), strict=False))
    given[name] = given[name].clone()
    given[name].view(-1)[7] = value
    with pytest.raises(ValueError, match=name):
        channel_bits(**given)
