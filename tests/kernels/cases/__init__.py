"""One case per row of kernels.def: how to call its op, and its float64 oracle.

A case makes operands for a matrix [rows, cols], runs the op through a `Kernels` object and returns
all outputs by name. `test_parity.py` sweeps sizes, ISAs and thread counts over every case;
`oracle`, where given, returns the same outputs computed in float64 NumPy. One file per op.
"""

from __future__ import annotations

from tests.kernels.cases import (
    alloc,
    attend,
    attention,
    channel_bits,
    codes,
    fakequant,
    fakequant_grids,
    gaussian,
    gemm,
    gemm_s8,
    histogram,
    noise,
    pack,
    qgemm,
    qlinear,
    qparams,
    qprefill,
    qtile,
    rangecode,
    reduce,
    rmsnorm,
    scaleloss,
    sqdiff,
)
from tests.kernels.cases.base import Case

CASES: dict[str, Case] = {
    **attention.CASES,
    **fakequant.CASES,
    **fakequant_grids.CASES,
    **reduce.CASES,
    **qparams.CASES,
    **codes.CASES,
    **pack.CASES,
    **scaleloss.CASES,
    **qgemm.CASES,
    **qtile.CASES,
    **gemm.CASES,
    **gemm_s8.CASES,
    **qlinear.CASES,
    **qprefill.CASES,
    **alloc.CASES,
    **histogram.CASES,
    **attend.CASES,
    **rmsnorm.CASES,
    **noise.CASES,
    **channel_bits.CASES,
    **gaussian.CASES,
    **sqdiff.CASES,
    **rangecode.CASES,
}
