"""Grids whose step sizes are learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmibq.ops.fakequant import fakequant
from cmibq.quant.quantizers.base import QUANTIZERS, Quantizer
from cmibq.quant.spec import QParams, QuantSpec, RangeMode

__all__ = ["LearnedQuantizer"]

SMALLEST = 2.0**-24  # the smallest positive float16


def _scaled_gradient(t: Tensor, factor: float | Tensor) -> Tensor:
    """Return `t`, its gradient multiplied by `factor`."""
    return t.detach() + (t - t.detach()) * factor


def _to_half(t: Tensor) -> Tensor:
    """Return `t` rounded to float16 and back, straight-through."""
    return t + (t.detach().to(torch.float16).to(t.dtype) - t.detach())


@QUANTIZERS.register("learned")
class LearnedQuantizer(Quantizer):
    """Round to grids with a trainable step size per row (LSQ); zero points stay as they are.

    Args:
        spec: how the tensor is quantised.
        qparams: where the step sizes start.
        gradient_factor: multiply the gradient of a step size by ``1 / sqrt(cols * top)``, with
            `cols` the elements it serves and `top` the largest level, so that steps and weights
            learn at the same pace (the paper's section 2.2).

    A step size is the magnitude of its parameter and at least 2**-24; with
    `RangeMode.HALF_SCALE` it is rounded to float16 in the forward pass too, so that packing
    changes nothing.

    References:
        Esser et al., "Learned Step Size Quantization", ICLR 2020.

    Example:
        >>> from cmibq.quant.spec import PerChannel
        >>> w = torch.tensor([[0.0, 1.2, 1.7, 3.0]])
        >>> quantizer = LearnedQuantizer.of(w, QuantSpec(2, PerChannel()))
        >>> quantizer(w).sum().backward()
        >>> quantizer.scale.grad
        tensor([0.0289])
    """

    zero_point: Tensor

    def __init__(self, spec: QuantSpec, qparams: QParams, *, gradient_factor: bool = True) -> None:
        super().__init__(spec, qparams)
        self.scale = nn.Parameter(qparams.scale.clone())
        self.register_buffer("zero_point", qparams.zero_point.clone())
        self.gradient_factor = gradient_factor

    def _step(self) -> Tensor:
        step = self.scale.abs().clamp(min=SMALLEST)
        return _to_half(step) if self.spec.range_mode & RangeMode.HALF_SCALE else step

    def qparams(self) -> QParams:
        """Return the grids, detached."""
        return QParams(self._step().detach(), self.zero_point, self.bits)

    def fake(self, m: Tensor) -> Tensor:
        """Return the matrix `m` [rows, cols] rounded to the grids."""
        step, q = self._step(), self.qparams()
        if self.gradient_factor:
            bits = self.bits if isinstance(self.bits, int) else self.bits.to(step.dtype)
            top = 2 ** (bits - 1) - 1 if self.spec.symmetric else 2**bits - 1
            step = _scaled_gradient(step, (max(m.shape[1], 1) * top) ** -0.5)
        return fakequant(m, step, q.lo(), q.hi())
