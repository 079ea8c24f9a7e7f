"""Linear layers on packed weights in their form in memory (tiles), as a torch operator.

The tiles are the canonical codes in another order (``csrc/core/qgemm.h`` has a picture). Inference
only: no gradient.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmibq.ops.library import LIBRARY, direct, empty, view
from cmibq.ops.qgemm import reference as canonical_reference
from cmibq.products import ACTIVATIONS
from cmibq.runtime import kernels

__all__ = [
    "ACTIVATIONS",
    "Grid",
    "finish",
    "multiply",
    "qlinear",
    "reference",
    "repack",
    "unrepack",
]

_scratch = threading.local()

LIBRARY.define(
    "qlinear(Tensor x, Tensor tiles, Tensor? bias, Tensor? up, Tensor? residual, int outs, "
    "int groups, int bits, bool asymmetric, int act_bits, int activation) -> Tensor"
)


class Grid(NamedTuple):
    """What the tiles of a weight [outs, cols] hold."""

    outs: int
    cols: int
    groups: int
    bits: int
    asymmetric: bool

    def nbytes(self) -> int:
        """Return the bytes of the tiles."""
        size: int = kernels().qgemm_tiles_bytes(*self, None)
        return size


def repack(packed: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    """Return the tiles of a weight in its canonical form.

    Args:
        packed: uint8 [N, ceil(K * bits / 8)], codes as `cmibq.ops.pack` packs them.
        scale: float16 [N, G], finite and > 0.
        zero: uint8 [N, ceil(G * bits / 8)], packed likewise; None if symmetric.
        grid: sizes and width.

    Returns:
        uint8 [bytes]. About as many as in the canonical form.

    Raises:
        ValueError: a scale is not finite and > 0, a size does not fit.

    Example:
        >>> from cmibq.ops import pack
        >>> packed = pack(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), bits=2)
        >>> repack(packed, torch.ones(1, 1).half(), None, Grid(1, 4, 1, 2, False)).shape
        torch.Size([320])
    """
    tiles = empty((grid.nbytes(),), torch.uint8)
    zeros = None if zero is None else view(zero).ravel()
    halves = view(scale).view(np.uint16)
    core = kernels()
    core.qgemm_repack(view(packed).ravel(), halves, zeros, grid.cols, grid.bits, None, view(tiles))
    return tiles


def unrepack(tiles: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the canonical form of a weight from its tiles: the inverse of `repack`, exactly.

    Args:
        tiles: uint8 [bytes] of `repack`.
        grid: sizes and width.

    Returns:
        (packed, scale, zero) as `repack` takes them.
    """

    def codes(cols: int) -> Tensor:
        return torch.empty(grid.outs, (cols * grid.bits + 7) // 8, dtype=torch.uint8)

    packed, scale = codes(grid.cols), torch.empty(grid.outs, grid.groups, dtype=torch.float16)
    zero = codes(grid.groups) if grid.asymmetric else None
    zeros = None if zero is None else view(zero).ravel()
    halves = view(scale).view(np.uint16)
    core, flat = kernels(), view(packed).ravel()
    core.qgemm_unrepack(view(tiles), grid.cols, grid.bits, None, flat, halves, zeros)
    return packed, scale, zero


def reference(
    x: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    up: Tensor | None,
    residual: Tensor | None,
    grid: Grid,
    act_bits: int,
    activation: str,
) -> Tensor:
    """Return what `qlinear` does, from the canonical form and in float64 until the end."""
    packed, scale, zero = unrepack(tiles, grid)
    rows = x.reshape(-1, grid.cols).to(torch.float64)
    if act_bits == 8:
        from cmibq.ops.codes import codes_token

        codes, xscale = codes_token(x.reshape(-1, grid.cols).to(torch.float32).contiguous())
        rows = codes.to(torch.float64) * xscale[:, None].to(torch.float64)
    exact = None if bias is None else bias.to(torch.float64)
    y = canonical_reference(rows, packed, scale.to(torch.float64), zero, exact, grid.bits)
    y = y.view(*x.shape[:-1], grid.outs)
    return finish(y, activation, up, residual).to(x.dtype)


def finish(y: Tensor, activation: str, up: Tensor | None, residual: Tensor | None) -> Tensor:
    """Return ``act(y) * up + residual``."""
    if activation == "silu":
        y = torch.nn.functional.silu(y)
    elif activation != "none":
        tanh = "tanh" if activation == "gelu_tanh" else "none"
        y = torch.nn.functional.gelu(y, approximate=tanh)
    y = y if up is None else y * up
    return y if residual is None else y + residual


def _work(size: int) -> NDArray[np.uint8]:
    """Return this thread's scratch memory, which grows as needed; a small layer takes its part."""
    held: NDArray[np.uint8] | None = getattr(_scratch, "memory", None)
    if held is None or len(held) < size:
        held = _scratch.memory = np.empty(size, np.uint8)
    return held


def _flat(t: Tensor | None, cols: int) -> NDArray[Any] | None:
    return None if t is None else view(t.reshape(-1, cols).contiguous())


def multiply(
    x: Tensor,
    tiles: NDArray[Any],
    bias: NDArray[Any] | None,
    up: Tensor | None,
    residual: Tensor | None,
    grid: Grid,
    act_bits: int,
    activation: int,
) -> Tensor:
    """Call the kernel; the layer keeps the views of its buffers, for a view costs 0.7 us."""
    outs, cols, groups, bits, asymmetric = grid
    core, half = kernels(), x.dtype is torch.bfloat16
    out = empty((*x.shape[:-1], outs), x.dtype)
    rows, results = view(x if x.is_contiguous() else x.contiguous()), view(out)
    if rows.ndim != 2:
        rows, results = rows.reshape(-1, cols), results.reshape(-1, outs)
    size = core.qlinear_workspace(len(rows), outs, cols, groups, bits, None, act_bits, half, 0)
    (core.qlinear_bf16 if half else core.qlinear_f32)(
        rows,
        act_bits,
        tiles,
        groups,
        bits,
        None,
        asymmetric,
        bias,
        _flat(up, outs),
        _flat(residual, outs),
        activation,
        results,
        _work(size),
    )
    return out


def _cpu(
    x: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    up: Tensor | None,
    residual: Tensor | None,
    outs: int,
    groups: int,
    bits: int,
    asymmetric: bool,
    act_bits: int,
    activation: int,
) -> Tensor:
    grid = Grid(outs, x.shape[-1], groups, bits, asymmetric)
    offset = None if bias is None else view(bias)
    return multiply(x, view(tiles), offset, up, residual, grid, act_bits, activation)


def _fake(
    x: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    up: Tensor | None,
    residual: Tensor | None,
    outs: int,
    *rest: object,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], outs)


LIBRARY.impl("qlinear", _cpu, "CPU")
torch.library.register_fake("cmibq::qlinear", _fake, lib=LIBRARY)


def qlinear(
    x: Tensor,
    tiles: Tensor,
    grid: Grid,
    bias: Tensor | None = None,
    *,
    act_bits: int = 16,
    activation: str = "none",
    up: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Apply a packed linear layer: ``act(x @ w.T + bias) * up + residual``, in one pass.

    Args:
        x: [..., K], float32 or bfloat16, on the CPU.
        tiles: uint8 of `repack`.
        grid: sizes and width of the weight [N, K].
        bias: float32 [N].
        act_bits: 16 takes `x` as it is, 8 rounds each row to signed 8-bit codes first.
        activation: one of `ACTIVATIONS`.
        up: [..., N], dtype of `x`: a factor (``silu(gate) * up``).
        residual: [..., N], dtype of `x`: added last.

    Returns:
        [..., N] in the dtype of `x`. The same bits on every ISA and thread count, and for a row
        whatever the other rows are.

    Raises:
        ValueError: a shape does not fit.
        TypeError: an array has another dtype.

    Example:
        >>> from cmibq.ops import pack
        >>> packed = pack(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), bits=2)
        >>> grid = Grid(1, 4, 1, 2, False)
        >>> tiles = repack(packed, torch.tensor([[0.5]]).half(), None, grid)
        >>> qlinear(torch.ones(2, 4), tiles, grid, residual=torch.ones(2, 1))
        tensor([[0.],
                [0.]])
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"qlinear: activation is {activation!r}; allowed are {', '.join(ACTIVATIONS)}"
        )
    if x.shape[-1:] != (grid.cols,):
        raise ValueError(f"qlinear: x is {list(x.shape)}, expected [..., {grid.cols}]")
    rest = (grid.outs, grid.groups, grid.bits, grid.asymmetric)
    run = _cpu if direct(x, tiles) else torch.ops.cmibq.qlinear
    out: Tensor = run(x, tiles, bias, up, residual, *rest, act_bits, ACTIVATIONS.index(activation))
    return out
