"""What a quantiser module is, and the list of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmibq.errors import ConfigError
from cmibq.quant.functional import quantize_weight
from cmibq.quant.spec import QParams, QuantSpec
from cmibq.registry import Registry

__all__ = ["QUANTIZERS", "Quantizer"]


class Quantizer(nn.Module):
    """A differentiable ``x -> x_hat`` on the grids of one tensor.

    Args:
        spec: how the tensor is quantised.
        qparams: its grids, one per row of ``spec.granularity.matrix(shape)``.

    Raises:
        ConfigError: a dynamic spec, or grids of another width.
    """

    mixed_bits: Tensor | None

    def __init__(self, spec: QuantSpec, qparams: QParams) -> None:
        super().__init__()
        if spec.dynamic:
            raise ConfigError(
                "spec.dynamic is True, but a quantiser keeps its grids; use "
                "cmibq.quant.fake_quantize_tokens for activations"
            )
        rows = len(qparams.scale)
        mixed = None if isinstance(qparams.bits, int) else qparams.bits
        same = qparams.bits == spec.bits if mixed is None else not isinstance(spec.bits, int)
        if len(qparams.zero_point) != rows or not same:
            raise ConfigError(
                f"qparams have {rows} scales, {len(qparams.zero_point)} zero points and "
                f"{qparams.bits} bits; expected as many of each and {spec.bits} bits"
            )
        self.spec = spec
        self._bits = qparams.bits if isinstance(qparams.bits, int) else 0
        self.register_buffer("mixed_bits", mixed, persistent=False)

    @property
    def bits(self) -> int | Tensor:
        """The width of the codes; uint8 [rows] where they differ."""
        return self._bits if self.mixed_bits is None else self.mixed_bits

    @classmethod
    def of(cls, x: Tensor, spec: QuantSpec, *, name: str = "weight") -> Quantizer:
        """Return a quantiser whose grids the observer of `spec` chose for `x`.

        Raises:
            ModelError: as `cmibq.quant.quantize_weight`.
        """
        return cls(spec, quantize_weight(x, spec, name=name))

    def qparams(self) -> QParams:
        """Return the grids in force, detached: what packing stores."""
        raise NotImplementedError

    def fake(self, m: Tensor) -> Tensor:
        """Return the matrix `m` [rows, cols] rounded to the grids; differentiable."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` rounded to its grids, in the shape and dtype of `x`."""
        granularity = self.spec.granularity
        m = self.fake(granularity.to_matrix(x).to(torch.float32))
        return granularity.from_matrix(m, x.shape).to(x.dtype)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"bits={self.spec.bits}, granularity={self.spec.granularity}"


QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer")
