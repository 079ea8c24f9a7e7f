"""Fixed grids with a straight-through gradient."""

from __future__ import annotations

from torch import Tensor

from cmibq.ops.fakequant import fakequant
from cmibq.quant.quantizers.base import QUANTIZERS, Quantizer
from cmibq.quant.spec import QParams, QuantSpec

__all__ = ["AffineQuantizer"]


@QUANTIZERS.register("affine")
class AffineQuantizer(Quantizer):
    """Round to fixed grids; the gradient passes where the value lies inside the range.

    Args:
        spec: how the tensor is quantised.
        qparams: its grids; kept as buffers.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", CVPR 2018, section 3.

    Example:
        >>> import torch
        >>> from cmibq.quant.spec import PerChannel
        >>> w = torch.tensor([[0.0, 1.2, 1.7, 3.0]])
        >>> AffineQuantizer.of(w, QuantSpec(2, PerChannel()))(w)
        tensor([[0., 1., 2., 3.]])
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, spec: QuantSpec, qparams: QParams) -> None:
        super().__init__(spec, qparams)
        self.register_buffer("scale", qparams.scale.clone())
        self.register_buffer("zero_point", qparams.zero_point.clone())

    def qparams(self) -> QParams:
        """Return the grids."""
        return QParams(self.scale, self.zero_point, self.bits)

    def fake(self, m: Tensor) -> Tensor:
        """Return the matrix `m` [rows, cols] rounded to the grids."""
        q = self.qparams()
        return fakequant(m, q.scale, q.lo(), q.hi())
