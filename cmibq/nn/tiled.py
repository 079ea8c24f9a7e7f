"""Weights that are in memory as tiles and in files as codes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from cmibq.nn.mixin import QuantModule
from cmibq.ops.library import view
from cmibq.ops.qlinear import Grid, repack, unrepack

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TiledCodes", "Views"]

_CANONICAL = ("qweight", "scales", "zeros")
_repacking = threading.Lock()


class Views(NamedTuple):
    """NumPy views of the tiles and the bias, and where those are; to make one takes 0.7 us."""

    arrays: tuple[NDArray[np.generic], NDArray[np.generic] | None]
    pointers: tuple[int, int]

    @classmethod
    def make(cls, tiles: Tensor, bias: Tensor | None) -> Views:
        """Return the views of two tensors."""
        offset = None if bias is None else view(bias)
        return cls(
            (view(tiles), offset), (tiles.data_ptr(), 0 if bias is None else bias.data_ptr())
        )

    def of(self, tiles: Tensor, bias: Tensor | None) -> bool:
        """Return whether the tensors still are where the views look."""
        return self.pointers == (tiles.data_ptr(), 0 if bias is None else bias.data_ptr())


class TiledCodes(QuantModule):
    """A module with the buffers of a packed weight, in one of two forms that hold the same numbers.

    The canonical form (`qweight`, `scales`, `zeros`) is what files and state dicts have. `repack_`
    replaces it by `tiles`, the order that kernels read; the canonical tensors are then rebuilt when
    they are asked for. Loading a state dict and moving to another device change back.

    Attributes:
        tiles: uint8 [bytes], or None while the module is in its canonical form.
    """

    tiles: Tensor | None
    qweight: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None
    _grid: Grid
    _views: Views | None = None

    def repack_(self) -> Tensor:
        """Change to the form in memory that the kernels read and return it; done once, on the CPU.

        Raises:
            ValueError: a scale is not finite and > 0 (a new layer is empty until it is loaded).
        """
        with _repacking:
            tiles = self._buffers["tiles"]
            if tiles is None:
                packed, scales, zeros = self.qweight, self.scales, self.zeros
                zeros = zeros if zeros is None else zeros.contiguous()
                tiles = repack(packed.contiguous(), scales.contiguous(), zeros, self._grid)
                self._buffers["tiles"] = tiles
                for name in _CANONICAL:
                    del self._buffers[name]
            return tiles

    def _canonical(self) -> dict[str, Tensor | None]:
        """Return the codes, scales and zero points of the file format by name."""
        tiles = self._buffers["tiles"]
        if tiles is None:
            return {name: self._buffers[name] for name in _CANONICAL}
        return dict(zip(_CANONICAL, unrepack(tiles, self._grid), strict=True))

    def _restore(self) -> None:
        """Change back to the canonical form."""
        with _repacking:
            if self._buffers["tiles"] is not None:
                bias = self._buffers.pop("bias")
                self._buffers.update(self._canonical(), bias=bias, tiles=None)
                self._views = None

    def __getattr__(self, name: str) -> Any:
        """Rebuild a buffer of the canonical form that is in memory as tiles."""
        if name in _CANONICAL and self.__dict__["_buffers"].get("tiles") is not None:
            return self._canonical()[name]
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what refers to memory."""
        return self.__dict__ | {"_views": None}

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if self._buffers["tiles"] is not None:
            parts = self._canonical().items()
            destination |= {prefix + name: t for name, t in parts if t is not None}
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._restore()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the buffers as asked but keep their dtypes: a cast would change the weight."""
        if self._buffers["tiles"] is not None and not fn(torch.empty(0, dtype=torch.uint8)).is_cpu:
            self._restore()  # tiles are for CPU kernels

        def keep_dtype(t: Tensor) -> Tensor:
            new = fn(t)
            return new if new.dtype == t.dtype else t.to(new.device)

        module: Any = super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return module  # type: ignore[no-any-return]
