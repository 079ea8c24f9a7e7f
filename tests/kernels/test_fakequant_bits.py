"""fakequant where it stores past the caches, and where the reciprocal stands in for a division."""

from __future__ import annotations

import numpy as np
import pytest

from cmibq.runtime import native
from tests.kernels.cases.base import nasty
from tests.kernels.cases.fakequant import affine

ISAS = native().ISAS
BYTES = 4 << 20  # CQ_STREAM_BYTES
OFFSETS = range(16)  # floats: 0..60 bytes beyond a cache line


def placed(like: np.ndarray, offset: int) -> np.ndarray:
    """Return an array that starts `offset` floats beyond a cache line."""
    memory = np.full(like.size + 48, 77, np.float32)
    start = (-memory.ctypes.data // 4) % 16 + offset
    return memory[start : start + like.size].reshape(like.shape)


def run(k: object, name: str, a: dict[str, np.ndarray], out: np.ndarray) -> list[np.ndarray]:
    grid = (a["scale"], a["lo"], a["hi"])
    if "bwd" not in name:
        getattr(k, name)(a["x"], *grid, out)
        return [out]
    gscale = np.empty(len(a["scale"]))
    rows, cols = out.shape
    if name.endswith("col"):
        work = np.empty((k.fakequant_bwd_blocks(rows, cols), cols))
    else:
        work = np.empty(k.fakequant_bwd_row_workspace(rows, cols))
    getattr(k, name)(a["x"], a["g"], *grid, out, gscale, work)
    return [out, gscale]


def operands(rng: np.random.Generator, rows: int, cols: int, axis: int) -> dict[str, np.ndarray]:
    x = np.tile(nasty(rng, 1 + rows // 16, cols), (16, 1))[:rows]
    g = np.resize(rng.normal(size=9973).astype(np.float32), x.shape)
    return {"x": x, "g": g, **affine(rng, (rows, cols)[axis])}


NAMES = ["fakequant_row", "fakequant_col", "fakequant_bwd_row", "fakequant_bwd_col"]


@pytest.mark.parametrize("name", NAMES)
def test_every_alignment_of_a_large_output(name: str, rng: np.random.Generator) -> None:
    rows, cols = (1100, 1000) if "row" in name else (1030, 1024)
    a = operands(rng, rows, cols, int(name.endswith("col")))
    assert 4 * rows * cols > BYTES
    want = run(native().Kernels("scalar"), name, a, np.empty_like(a["x"]))
    for isa in ISAS[1:3]:  # richer levels have no kernels of their own
        for offset in OFFSETS:
            got = run(native().Kernels(isa, 2), name, a, placed(a["x"], offset))
            for g, w in zip(got, want, strict=True):
                np.testing.assert_array_equal(g, w, err_msg=f"{isa} {offset}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cols", [16, 17, 256, 257, 70000, 131072 + 3])
def test_sizes_on_both_sides_of_the_threshold(
    name: str, cols: int, rng: np.random.Generator
) -> None:
    for size in (BYTES - 4, BYTES):
        rows = -(-size // (4 * cols)) - (size < BYTES)
        a = operands(rng, rows, cols, int(name.endswith("col")))
        want = run(native().Kernels("scalar"), name, a, np.empty_like(a["x"]))
        for threads in (1, 3):
            got = run(native().Kernels(ISAS[-1], threads), name, a, np.empty_like(a["x"]))
            for g, w in zip(got, want, strict=True):
                np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_large_array_in_place(axis: int, rng: np.random.Generator) -> None:
    a = operands(rng, 1100, 1024, axis)
    name = ("fakequant_row", "fakequant_col")[axis]
    want = run(native().Kernels("scalar"), name, a, np.empty_like(a["x"]))[0]
    for isa in ISAS:
        b = {**a, "x": a["x"].copy()}
        run(native().Kernels(isa), name, b, b["x"])
        np.testing.assert_array_equal(b["x"], want)


def test_gradient_of_a_long_row_is_summed_in_chunks() -> None:
    x = np.full((1, 65536 + 16), 0.25, np.float32)
    a = {"x": x, "g": np.ones_like(x), "scale": np.ones(1, np.float32)}
    a |= {"lo": np.float32([-2]), "hi": np.float32([1])}
    gx, gscale = run(native().Kernels(None, 2), "fakequant_bwd_row", a, np.empty_like(x))
    assert gx.all()
    assert gscale[0] == -0.25 * x.size


EXTREME = np.float32([1e-42, 2**-126, 2**-61, 2**-60, 1e-7, 0.1, 1 / 3, 3e7, 2**60, 2**61, 3e38])


@pytest.mark.parametrize("bound", [1, 127, 2**20, 2**22])
def test_quotients_next_to_a_tie(bound: int, rng: np.random.Generator) -> None:
    """x within 3 units of scale * (k + 1/2), where one wrong bit of the quotient would show."""
    random = (rng.random(300) + 1).astype(np.float32) * np.float32(2) ** rng.integers(-40, 40, 300)
    scale = np.concatenate([EXTREME, random.astype(np.float32)])
    k = rng.integers(-bound - 2, bound + 3, (len(scale), 501)) + 0.5
    k[:, :2] = -bound - 0.5, bound + 0.5
    with np.errstate(over="ignore"):
        x = (k * scale[:, None].astype(np.float64)).astype(np.float32)
    x = (x.view(np.int32) + rng.integers(-3, 4, x.shape, dtype=np.int32)).view(np.float32)
    a = {"x": x, "g": x, "scale": scale}
    a |= {
        "lo": np.full(len(scale), -bound, np.float32),
        "hi": np.full(len(scale), bound - 1.0, np.float32),
    }
    want = run(native().Kernels("scalar"), "fakequant_row", a, np.empty_like(x))[0]
    with np.errstate(all="ignore"):
        v = np.clip(x / scale[:, None], a["lo"][:, None], a["hi"][:, None])
        np.testing.assert_array_equal(want, np.rint(v) * scale[:, None] + np.float32(0))
    for isa in ISAS[1:]:
        got = run(native().Kernels(isa), "fakequant_row", a, np.empty_like(x))[0]
        np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32), err_msg=isa)
