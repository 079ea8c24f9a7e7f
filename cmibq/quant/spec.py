"""How a tensor is quantised (`QuantSpec`) and what that gave (`QParams`)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmibq.errors import ConfigError
from cmibq.quant.granularity import Granularity, PerChannel, PerGroup, PerTensor, PerToken
from cmibq.quant.grid import QuantGrid
from cmibq.strips import STRIP, check_bits

__all__ = [
    "Granularity",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "QParams",
    "QuantSpec",
    "RangeMode",
]


class RangeMode(enum.IntFlag, boundary=enum.STRICT):
    """How a range becomes a grid (the same bits as in ``csrc/core/grid.h``).

    Example:
        >>> RangeMode.default(symmetric=False) == RangeMode.ZERO_IN_RANGE | RangeMode.HALF_SCALE
        True
    """

    SYMMETRIC = 1
    """Signed around 0: the zero point is ``2**(bits-1)``."""
    ZERO_IN_RANGE = 2
    """Asymmetric ranges are widened to contain 0."""
    HALF_SCALE = 4
    """The scale is rounded to float16, as it is stored, before any code is made."""

    @classmethod
    def default(cls, *, symmetric: bool) -> RangeMode:
        """Return what the library does unless told otherwise."""
        return cls.HALF_SCALE | (cls.SYMMETRIC if symmetric else cls.ZERO_IN_RANGE)

    @classmethod
    def reference(cls, *, symmetric: bool) -> RangeMode:
        """Return the behaviour of the published MBQ and AWQ code: float32 scales, range as met."""
        return cls.SYMMETRIC if symmetric else cls(0)


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantised.

    Args:
        bits: width of the codes, 1..8; a symmetric grid needs 2. Mixed bits: one width for every 16
            successive rows of a weight (outputs), the last of which may have fewer; such a weight
            is quantised per group or per output row.
        granularity: which elements share a grid.
        symmetric: signed around 0.
        mode: how a range becomes a grid; None takes `RangeMode.default`.
        observer: name in `cmibq.quant.OBSERVERS`: how the range is found.
        dynamic: the range is found anew for every tensor (activations).

    Raises:
        ConfigError: bits out of range, mixed bits for another granularity, or `mode` and
            `symmetric` disagree.

    Example:
        >>> spec = QuantSpec(4, PerGroup(128))
        >>> spec.range_mode == RangeMode.ZERO_IN_RANGE | RangeMode.HALF_SCALE
        True
        >>> QuantSpec((2, 4), PerGroup(8)).row_bits((20, 16)).tolist()[::8]
        [2, 2, 2, 2, 4]
    """

    bits: int | tuple[int, ...]
    granularity: Granularity
    symmetric: bool = False
    mode: RangeMode | None = None
    observer: str = "minmax"
    dynamic: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int):
            widths: Any = np.asarray(self.bits).tolist()  # a sequence or array of widths, or one
            object.__setattr__(self, "bits", widths if isinstance(widths, int) else tuple(widths))
        least = 2 if self.symmetric else 1
        for width in (self.bits,) if isinstance(self.bits, int) else self.bits:
            if not least <= width <= 8:
                kind = "symmetric" if self.symmetric else "asymmetric"
                raise ConfigError(f"bits is {self.bits}; allowed are {least}..8 ({kind})")
        rows = isinstance(self.granularity, PerGroup) or self.granularity == PerChannel(0)
        if not isinstance(self.bits, int) and not rows:
            raise ConfigError(
                f"bits has {len(self.bits)} widths for {self.granularity}; mixed bits need "
                "PerGroup or PerChannel(0)"
            )
        if self.mode is not None and bool(self.mode & RangeMode.SYMMETRIC) != self.symmetric:
            raise ConfigError(
                f"mode is {self.mode!r} but symmetric is {self.symmetric}; leave mode at None or "
                "make both agree"
            )

    @property
    def range_mode(self) -> RangeMode:
        """The mode in force: `mode`, or the default."""
        return RangeMode.default(symmetric=self.symmetric) if self.mode is None else self.mode

    @property
    def grid(self) -> QuantGrid:
        """The codes, unsigned: ``value = (code - zero_point) * scale``."""
        return QuantGrid(self.one_width)

    @property
    def one_width(self) -> int:
        """The width of all codes.

        Raises:
            ConfigError: the bits are mixed.
        """
        if isinstance(self.bits, int):
            return self.bits
        raise ConfigError(
            f"bits has {len(self.bits)} widths where one is needed; quantise with "
            "cmibq.quant.quantize_weight, which takes the rows of each width together"
        )

    def row_bits(self, shape: Sequence[int]) -> Tensor:
        """Return the width of every row of the matrix of a tensor: uint8 [rows].

        Args:
            shape: of the tensor.

        Raises:
            ConfigError: another number of widths than the tensor has strips of 16 outputs.
        """
        rows, _ = self.granularity.matrix(shape)
        if isinstance(self.bits, int):
            return torch.full((rows,), self.bits, dtype=torch.uint8)
        strips = torch.tensor(check_bits(self.bits, shape[0], least=1), dtype=torch.uint8)
        outputs = strips.repeat_interleave(STRIP)[: shape[0]]
        return outputs.repeat_interleave(rows // max(shape[0], 1))


@dataclass(frozen=True, eq=False)
class QParams:
    """Grids of the rows of a matrix: ``value = (code - zero_point) * scale``.

    Args:
        scale: float32 [rows], > 0.
        zero_point: uint8 [rows], a code.
        bits: codes are 0 .. 2**bits - 1; uint8 [rows] where they differ.

    Example:
        >>> q = QParams(torch.tensor([0.5]), torch.tensor([3], dtype=torch.uint8), 2)
        >>> q.lo(), q.hi()
        (tensor([-3.]), tensor([0.]))
    """

    scale: Tensor
    zero_point: Tensor
    bits: int | Tensor

    def lo(self) -> Tensor:
        """Return the smallest level, ``-zero_point``, in the dtype of `scale`: [rows]."""
        return 0 - self.zero_point.to(self.scale.dtype)

    def hi(self) -> Tensor:
        """Return the largest level, ``2**bits - 1 - zero_point``: [rows]."""
        if isinstance(self.bits, int):
            return self.lo() + float(2**self.bits - 1)
        return self.lo() + (torch.exp2(self.bits.to(self.scale.dtype)) - 1)

    def to(self, device: torch.device | str) -> QParams:
        """Return the same grids on another device."""
        bits = self.bits if isinstance(self.bits, int) else self.bits.to(device)
        return QParams(self.scale.to(device), self.zero_point.to(device), bits)
