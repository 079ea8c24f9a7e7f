"""Post-training quantisation: calibrate, search scales, fuse them, pack, save."""

from __future__ import annotations

from cmibq.ptq.job import Job, check, prepare
from cmibq.ptq.quantize import QuantizeResult, quantize
from cmibq.ptq.tower import quantize_

__all__ = ["Job", "QuantizeResult", "check", "prepare", "quantize", "quantize_"]
