"""Quantiser modules. A new one is a file here and a line below."""

from __future__ import annotations

from cmibq.quant.quantizers import affine, channel_bits, channel_grids, learned
from cmibq.quant.quantizers.base import QUANTIZERS, Quantizer

__all__ = ["QUANTIZERS", "Quantizer", "affine", "channel_bits", "channel_grids", "learned"]
