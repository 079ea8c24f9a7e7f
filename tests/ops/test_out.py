"""`out=` of every op: autograd learns of it, and what cannot hold the result is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cmibq import ops
from cmibq.errors import ConfigError

X = torch.linspace(-2, 3, 6 * 8).reshape(6, 8)
SCALE, LO, HI = torch.full((6,), 0.25), torch.full((6,), -8.0), torch.full((6,), 7.0)
ZERO = torch.full((6,), 8, dtype=torch.uint8)
CODES = torch.arange(48, dtype=torch.uint8).reshape(6, 8) % 16
PACKED = ops.pack(CODES, bits=4)
INT8 = torch.arange(-24, 24, dtype=torch.int8).reshape(6, 8)
STEPS = torch.full((6, 1), 0.5).half()
MIXED = (torch.arange(16 * 2 + 4 * 4, dtype=torch.uint8), torch.full((20, 1), 0.5).half())
TILING = ops.Tiling.of(20, 8, 1, (2, 4), False)
TILES = ops.repack(*MIXED, None, TILING)
CALLS: dict[str, Callable[..., Any]] = {
    "fakequant": lambda **k: ops.fakequant(X, SCALE, LO, HI, **k),
    "fakequant_log2": lambda **k: ops.fakequant_log2(X, SCALE, LO, 0 * HI, **k),
    "fakequant_torch_compat": lambda **k: ops.fakequant_torch_compat(X, SCALE, LO, HI, **k),
    "fakequant_token": lambda **k: ops.fakequant_token(X, bits=4, **k),
    "codes": lambda **k: ops.codes(X, SCALE, ZERO, bits=4, **k),
    "codes_token": lambda **k: ops.codes_token(X, **k)[0],
    "decode": lambda **k: ops.decode(CODES, SCALE, ZERO, **k),
    "pack": lambda **k: ops.pack(CODES, bits=4, **k),
    "unpack": lambda **k: ops.unpack(PACKED, bits=4, cols=8, **k),
    "qgemm": lambda **k: ops.qgemm(X, PACKED, STEPS, bits=4, **k),
    "qgemm mixed": lambda **k: ops.qgemm(X, *MIXED, bits=(2, 4), **k),
    "qgemm_s8": lambda **k: ops.qgemm_s8(INT8, SCALE, PACKED, STEPS, bits=4, **k),
    "qlinear": lambda **k: ops.qlinear(X, TILES, TILING, **k),
    "gemm": lambda **k: ops.gemm(X, X, trans_b=True, **k),
    "gemm_s8": lambda **k: ops.gemm_s8(INT8, INT8, **k),
}
FLOATS = [name for name in CALLS if CALLS[name]().dtype == torch.float32]


@pytest.mark.parametrize("name", CALLS)
def test_the_result_lies_there(name: str) -> None:
    want = CALLS[name]()
    out = torch.empty_like(want)
    assert CALLS[name](out=out) is out
    assert torch.equal(out, want)


@pytest.mark.parametrize("name", FLOATS)
def test_a_saved_tensor_that_was_overwritten_is_noticed(name: str) -> None:
    out = torch.ones_like(CALLS[name]())
    a = torch.ones_like(out, requires_grad=True)
    loss = (a * out).sum()  # needs the old values of `out`
    CALLS[name](out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", FLOATS)
def test_a_place_that_has_a_gradient_is_refused(name: str) -> None:
    leaf = torch.zeros_like(CALLS[name](), requires_grad=True)
    for out in (leaf, leaf * 1):
        with pytest.raises(ConfigError, match="out is given where a gradient is recorded"):
            CALLS[name](out=out)
    with torch.no_grad():
        CALLS[name](out=leaf)
    with torch.inference_mode():
        CALLS[name](out=torch.zeros_like(leaf))


@pytest.mark.parametrize("name", CALLS)
def test_another_shape_or_type_or_order_is_refused(name: str) -> None:
    want = CALLS[name]()
    rows, cols = want.shape
    unfit = [torch.empty(rows + 1, cols, dtype=want.dtype), torch.empty(2, *want.shape)]
    unfit += [
        want.double(),
        want.half(),
        want.new_empty(cols, rows).t(),
        want[:1].expand(rows, cols),
    ]
    for out in unfit:
        before = out.clone()
        with pytest.raises((ValueError, TypeError), match="out"):
            CALLS[name](out=out)
        assert torch.equal(out.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [0, 1])
def test_reductions(axis: int, dtype: torch.dtype) -> None:
    x = X.to(dtype)
    for run in (ops.absmax, ops.abssum):
        want = run(x, axis=axis)
        out = torch.empty_like(want)
        assert run(x, axis=axis, out=out) is out
        assert torch.equal(out, want)
        for unfit in (want[1:].clone(), want.half(), torch.ones(9)):
            with pytest.raises((ValueError, TypeError), match="out"):
                run(x, axis=axis, out=unfit)
    pair = ops.minmax(x, axis=axis)
    places = (torch.empty_like(pair[0]), torch.empty_like(pair[1]))
    got = ops.minmax(x, axis=axis, out=places)
    for made, place, want in zip(got, places, pair, strict=True):
        assert made is place
        assert torch.equal(place, want)
    with pytest.raises((ValueError, TypeError), match="out"):
        ops.minmax(x, axis=axis, out=(places[0].half(), places[1]))
    with pytest.raises(ConfigError, match="out is given where a gradient"):
        ops.minmax(x, axis=axis, out=(places[0].requires_grad_(), places[1]))


OVERLAPS = [name for name in FLOATS if not name.startswith("q")]


@pytest.mark.parametrize("name", OVERLAPS)
def test_a_part_of_an_input_is_refused(name: str) -> None:
    buffer = torch.zeros(60)
    buffer[:48] = X.flatten()
    with pytest.raises(ValueError, match="overlaps"):
        _shifted(name, buffer[:48].view(6, 8), buffer[4:52].view(6, 8))


def _shifted(name: str, x: Tensor, out: Tensor) -> Tensor:
    calls = {
        "fakequant_token": lambda: ops.fakequant_token(x, bits=4, out=out),
        "gemm": lambda: ops.gemm(x, torch.eye(8), out=out),
    }
    if name == "decode":  # its scales are few: let these overlap
        scale = x.view(-1)[8:14].fill_(1.0)
        return ops.decode(CODES, scale, ZERO, out=out)
    if name in calls:
        return calls[name]()
    made: Tensor = getattr(ops, name)(x, SCALE, LO, 0 * HI, out=out)
    return made


@pytest.mark.parametrize("batch", [(2, 3), (2, 3, 2), (2, 1, 3, 2)])
def test_a_batched_product_is_never_written_to_a_copy(batch: tuple[int, ...]) -> None:
    a, b = torch.ones(*batch, 4, 5), torch.ones(*batch, 5, 6)
    out = torch.zeros(*batch[::-1], 4, 6).permute(*reversed(range(len(batch))), -2, -1)
    with pytest.raises(ValueError, match="out must be C-contiguous"):
        ops.gemm(a, b, out=out)
    assert ops.gemm(a, b, out=out.contiguous()).min() == 5


def test_tensors_without_values_are_not_taken_for_values() -> None:
    with pytest.raises(ConfigError, match="tensors are on cpu, meta; give them all values"):
        ops.fakequant(X, SCALE.to("meta"), LO, HI)
    with pytest.raises(ConfigError, match="tensors are on cpu, meta"):
        ops.fakequant(X, SCALE, LO, HI, out=X.to("meta"))
    on_meta = (t.to("meta") for t in (X, SCALE, LO, HI))
    assert ops.fakequant(*on_meta).is_meta


def test_an_unknown_activation_of_another_kind_is_named() -> None:
    with pytest.raises(ValueError, match="activation is 3; known: 'gelu'"):
        ops.gemm(X, X, trans_b=True, activation=3)  # type: ignore[arg-type]
