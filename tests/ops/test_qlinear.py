from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from cmibq.nn import PackedLinear
from cmibq.ops import codes_token, pack, qgemm, qgemm_s8
from cmibq.ops.qlinear import ACTIVATIONS, qlinear, reference
from cmibq.ops.tiles import Tiling, repack, unrepack
from cmibq.quant import PerGroup, QuantSpec
from cmibq.runtime import kernels, native

Weight = tuple[Tensor, Tensor, Tensor | None]
SHAPES = [(40, 1024, 8), (33, 512, 1), (16, 768, 2), (17, 320, 10), (50, 72, 3)]
"""Outputs, inputs, groups: groups of whole tiles, of several blocks, of parts of tiles."""


def weight(grid: Tiling) -> Weight:
    g = torch.Generator().manual_seed(grid.bits + grid.cols)

    def codes(cols: int) -> Tensor:
        drawn = torch.randint(0, 2**grid.bits, (grid.outs, cols), dtype=torch.uint8, generator=g)
        return pack(drawn, bits=grid.bits)

    scale = (torch.rand(grid.outs, grid.groups, generator=g) + 0.01).half()
    return codes(grid.cols), scale, codes(grid.groups) if grid.asymmetric else None


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grids(bits: int) -> list[Tiling]:
    return [Tiling(n, k, g, bits, bool((bits + g) % 2)) for n, k, g in SHAPES]


@pytest.mark.parametrize("bits", range(2, 9))
def test_canonical_form_comes_back_exactly(bits: int) -> None:
    for grid in grids(bits):
        w = weight(grid)
        back = unrepack(repack(*w, grid), grid)
        for got, want in zip(back, w, strict=True):
            assert (got is None and want is None) or torch.equal(got, want)


@pytest.mark.parametrize("act_bits", [8, 16])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_isa_and_number_of_rows_has_the_same_bits(bits: int, act_bits: int) -> None:
    for n, k, groups in SHAPES:
        grid = Tiling(n, k, groups, bits, bool(bits % 2))
        tiles, x = repack(*weight(grid), grid).numpy(), normal(35, k).numpy()
        want = run("scalar", 1, x[:9], tiles, grid, act_bits)
        for isa in native().ISAS[1:]:
            for rows in (1, 2, 3, 4, 8, 9):
                got = run(isa, 1 + rows % 3, x[:rows], tiles, grid, act_bits)
                assert np.array_equal(got, want[:rows]), (isa, grid, rows)
        for isa in native().ISAS[1:]:  # 35 rows take the blocks, where the level has them
            many = run(isa, 2, x, tiles, grid, act_bits)
            assert np.array_equal(many[:9], want), (isa, grid)


def run(
    isa: str, threads: int, x: np.ndarray, tiles: np.ndarray, grid: Tiling, act_bits: int
) -> np.ndarray:
    core, out = native().Kernels(isa, threads), np.full((len(x), grid.outs), 7, np.float32)
    sizes = (len(x), grid.outs, grid.cols, grid.groups, grid.bits, None, act_bits, 0, 0)
    work = np.full(core.qlinear_workspace(*sizes), 255, np.uint8)
    x, form = np.ascontiguousarray(x), (grid.groups, grid.bits, None, int(grid.asymmetric))
    core.qlinear_f32(x, act_bits, tiles, *form, None, None, None, 0, out, work)
    return out


def test_it_is_qgemm_on_the_canonical_form() -> None:
    for grid in grids(4):
        w, x, bias = weight(grid), normal(3, grid.cols), normal(grid.outs)
        tiles = repack(*w, grid)
        assert torch.equal(qlinear(x, tiles, grid, bias), qgemm(x, *w, bias, bits=4))
        codes, scale = codes_token(x)
        got = qlinear(x, tiles, grid, bias, act_bits=8)
        assert torch.equal(got, qgemm_s8(codes, scale, *w, bias, bits=4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("act_bits", [8, 16])
def test_epilogue_against_the_reference(act_bits: int, activation: str, dtype: torch.dtype) -> None:
    grid = Tiling(40, 256, 2, 4, True)
    tiles, x = repack(*weight(grid), grid), (normal(2, 3, 256) / 50).to(dtype)
    bias, up, rest = normal(40, seed=2), normal(2, 3, 40).to(dtype), normal(2, 3, 40).to(dtype)
    got = qlinear(
        x, tiles, grid, bias, act_bits=act_bits, activation=activation, up=up, residual=rest
    )
    want = reference(x, tiles, bias, up, rest, grid, act_bits, activation)
    assert got.shape == (2, 3, 40)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=2e-5)


@pytest.mark.parametrize("outs", [20, 40])
@pytest.mark.parametrize("cols", [64, 129, 4168])
def test_bytes_with_a_scale_per_output(cols: int, outs: int) -> None:
    """Many rows take the tiles as they lie, in two chunks of 4168 inputs; an odd strip is last."""
    for asymmetric in (False, True):
        grid = Tiling(outs, cols, 1, 8, asymmetric)
        tiles, x = repack(*weight(grid), grid).numpy(), normal(33, cols).numpy()
        x[0], x[1] = 1.0, -1.0
        for isa in native().ISAS:
            few = [run(isa, 1, rows, tiles, grid, 8) for rows in np.array_split(x, 3)]
            assert np.array_equal(run(isa, 2, x, tiles, grid, 8), np.concatenate(few)), isa


@pytest.mark.parametrize("groups", [1, 2, 9])
def test_bfloat16_rows_are_their_float32_values(groups: int) -> None:
    """Groups of 608, 304 and 64 inputs; sixteen rows of small integers leave out two digits."""
    cols = 576 if groups == 9 else 608
    grid = Tiling(33, cols, groups, 4, True)
    tiles, x = repack(*weight(grid), grid), normal(70, cols).bfloat16()
    x[16:32] = torch.randint(-9, 9, (16, cols)).bfloat16()
    got = qlinear(x, tiles, grid)
    each = torch.cat([qlinear(row, tiles, grid) for row in x.float().split(5)])
    assert torch.equal(qlinear(x.float(), tiles, grid), each)
    assert torch.equal(got, each.bfloat16())


def test_small_inputs_beside_large_ones_are_not_lost() -> None:
    """An input 2**-20 of the largest keeps ten bits; its exact neighbour keeps all."""
    grid = Tiling(16, 64, 1, 8, False)
    packed = torch.full((16, 64), 129, dtype=torch.uint8)  # code - zero = 1
    packed[:, 0] = 128  # and 0 for the largest input
    tiles = repack(packed, torch.ones(16, 1).half(), None, grid)
    x = torch.full((1, 64), 2.0**-20)
    x[0, 0] = 1.0
    assert torch.equal(qlinear(x, tiles, grid), torch.full((1, 16), 63 * 2.0**-20))


def test_compiled_and_fake_agree_with_eager() -> None:
    grid = Tiling(8, 64, 2, 3, False)
    tiles, x = repack(*weight(grid), grid), normal(2, 64)
    args = (x, tiles, None, None, None, None, 8, 2, 3, False, 16, 0)
    torch.library.opcheck(torch.ops.cmibq.qlinear, args)


def test_bad_arguments() -> None:
    grid = Tiling(8, 64, 2, 3, False)
    tiles = repack(*weight(grid), grid)
    with pytest.raises(ValueError, match=r"x is \[2, 63\], expected \[..., 64\]"):
        qlinear(normal(2, 63), tiles, grid)
    with pytest.raises(ValueError, match="activation is 'relu'; allowed are none, gelu"):
        qlinear(normal(2, 64), tiles, grid, activation="relu")
    with pytest.raises(ValueError, match=r"tiles has .*, expected"):
        qlinear(normal(2, 64), tiles[1:], grid)
    with pytest.raises(ValueError, match="dimension N is 8, expected 7"):
        qlinear(normal(2, 64), tiles, grid, normal(7))
    with pytest.raises(ValueError, match=r"scale\[0\] is 0"):
        repack(weight(grid)[0], torch.zeros(8, 2).half(), None, grid)
    strips = np.array([9], np.uint8)
    with pytest.raises(ValueError, match=r"strip_bits\[0\] is 9, allowed are 2..8"):
        kernels().qgemm_tiles_bytes(8, 64, 2, 3, 0, strips)


def test_a_layer_that_runs_in_the_middle_of_another_has_its_own_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a signal handler does, between two blocks of the kernel."""
    grid = Tiling(40, 1024, 8, 4, False)
    tiles, x = repack(*weight(grid), grid), normal(64, 1024)
    want, core, scratch = qlinear(x, tiles, grid, act_bits=8), kernels(), []

    class Core:
        qlinear_workspace = core.qlinear_workspace

        @staticmethod
        def qlinear_f32(*args: np.ndarray) -> None:
            scratch.append(args[-1])
            if len(scratch) == 1:
                assert torch.equal(qlinear(x, tiles, grid, act_bits=8), want)
            core.qlinear_f32(*args)

    monkeypatch.setattr(sys.modules["cmibq.ops.qlinear"], "kernels", Core)
    assert torch.equal(qlinear(x, tiles, grid, act_bits=8), want)
    assert not np.shares_memory(*scratch)


def test_factors_and_results_of_another_shape_or_order_are_refused() -> None:
    grid = Tiling(16, 64, 2, 4, False)
    tiles, x = repack(*weight(grid), grid), normal(2, 3, 64)
    other = normal(3, 2, 16)
    with pytest.raises(ValueError, match=r"residual is \[3, 2, 16\], expected \[2, 3, 16\]"):
        qlinear(x, tiles, grid, residual=other)
    with pytest.raises(ValueError, match=r"up is \[6, 16\], expected \[2, 3, 16\]"):
        qlinear(x, tiles, grid, up=other.view(6, 16))
    with pytest.raises(ValueError, match="out must be contiguous"):
        qlinear(x, tiles, grid, out=other.transpose(0, 1))


def test_integers_are_no_activations() -> None:
    layer = PackedLinear.from_linear(torch.nn.Linear(64, 16), QuantSpec(4, PerGroup(32)))
    with pytest.raises(TypeError, match=r"x is torch.int32; give a floating point tensor"):
        layer(torch.ones(2, 64, dtype=torch.int32))
