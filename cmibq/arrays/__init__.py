"""The kernels for NumPy: arrays in, arrays out, without torch.

Every function takes C-contiguous arrays, allocates only its result (or writes to `out`), and gives
the same bits on every ISA and thread count.
"""

from __future__ import annotations

from cmibq.arrays.alloc import Choice, allocate, project_bits, project_bits_backward, round_bits
from cmibq.arrays.attention import attention
from cmibq.arrays.clip import Clipped, clip_search
from cmibq.arrays.codes import codes, codes_token, decode, fakequant_token
from cmibq.arrays.fakequant import fakequant, fakequant_backward
from cmibq.arrays.gemm import gemm
from cmibq.arrays.gemm_s8 import gemm_s8
from cmibq.arrays.gptq import Compensated, gptq
from cmibq.arrays.grids import fakequant_log2, fakequant_torch_compat, power_of_two
from cmibq.arrays.histogram import Histogram, klclip, percentile
from cmibq.arrays.moments import output_error, second_moments
from cmibq.arrays.pack import pack, unpack
from cmibq.arrays.qgemm import qgemm, qgemm_s8
from cmibq.arrays.qparams import qparams, qparams_mse
from cmibq.arrays.race import Race, race
from cmibq.arrays.rangecode import (
    RangeStream,
    RangeTables,
    integer_frequencies,
    range_bits,
    range_decode,
    range_encode,
)
from cmibq.arrays.reduce import absmax, abssum, minmax
from cmibq.arrays.scaleloss import scaleloss
from cmibq.arrays.search import ScaleSearch, search_scales
from cmibq.arrays.weights import PackedWeight, pack_weight, unpack_weight

__all__ = [
    "Choice",
    "Clipped",
    "Compensated",
    "Histogram",
    "PackedWeight",
    "Race",
    "RangeStream",
    "RangeTables",
    "ScaleSearch",
    "absmax",
    "abssum",
    "allocate",
    "attention",
    "clip_search",
    "codes",
    "codes_token",
    "decode",
    "fakequant",
    "fakequant_backward",
    "fakequant_log2",
    "fakequant_token",
    "fakequant_torch_compat",
    "gemm",
    "gemm_s8",
    "gptq",
    "integer_frequencies",
    "klclip",
    "minmax",
    "output_error",
    "pack",
    "pack_weight",
    "percentile",
    "power_of_two",
    "project_bits",
    "project_bits_backward",
    "qgemm",
    "qgemm_s8",
    "qparams",
    "qparams_mse",
    "race",
    "range_bits",
    "range_decode",
    "range_encode",
    "round_bits",
    "scaleloss",
    "search_scales",
    "second_moments",
    "unpack",
    "unpack_weight",
]
