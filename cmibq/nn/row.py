"""One row through packed layers, with all memory and arguments made beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmibq.nn.joined import Joined
from cmibq.ops.library import view
from cmibq.products import ACTIVATIONS
from cmibq.runtime import kernels

__all__ = ["Row"]

Floats = NDArray[np.float32]


class Row:
    """A kernel call that reads and writes the same memory every time: 1 us around the kernel.

    What a call of the layers would do anew for each row (views, workspace, result) is done once.

    Args:
        layers: packed layers that share the input.
        x: float32 [1, K], read by every call.
        out: float32 [1, N], written.
        work: for the kernel; `Row.workspace` bytes at least.
        activation: one of `cmibq.ops.qlinear.ACTIVATIONS`.
        up: float32 [1, N], a factor, or None.
        residual: float32 [1, N], added last, or None.

    Example:
        >>> from cmibq.nn import PackedLinear
        >>> layer = PackedLinear(64, 16, bits=4, group_size=64, symmetric=True)
        >>> _ = layer.scales.fill_(0.5)  # codes are 0, so weights are -8 * 0.5
        >>> joined, x, out = Joined([layer]), np.ones((1, 64), "f"), np.empty((1, 16), "f")
        >>> Row(joined, x, out, np.empty(Row.workspace(joined), np.uint8))()
        >>> float(out[0, 0])
        -256.0
    """

    __slots__ = ("_args", "_layers", "_run", "_tiles")

    def __init__(
        self,
        layers: Joined,
        x: Floats,
        out: Floats,
        work: NDArray[np.uint8],
        *,
        activation: str = "none",
        up: Floats | None = None,
        residual: Floats | None = None,
    ) -> None:
        self._layers, self._tiles, tiling = layers, layers.tiles(), layers.tiling
        bias = None if layers.bias is None else view(layers.bias)
        shape = (view(self._tiles), tiling.groups, tiling.bits, tiling.strip_bits)
        act = ACTIVATIONS.index(activation)
        rest = (int(tiling.asymmetric), bias, up, residual, act, out, work)
        self._args: tuple[Any, ...] = (x, layers.act_bits, *shape, *rest)
        self._run = kernels().qlinear_f32

    @staticmethod
    def workspace(layers: Joined) -> int:
        """Return the bytes that the kernel needs."""
        outs, cols, groups, bits, _, strips = layers.tiling
        act = layers.act_bits
        need: int = kernels().qlinear_workspace(1, outs, cols, groups, bits, strips, act, 0, 0)
        return need

    def valid(self) -> bool:
        """Tell whether the layers are still where this looks."""
        return self._layers.tiles() is self._tiles

    def __call__(self) -> None:
        """Write ``act(x @ w.T + bias) * up + residual`` to `out`."""
        self._run(*self._args)
