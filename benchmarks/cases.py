"""The one list of cases, axis by axis, in the order of the table of bars; no bar: at the end."""

from __future__ import annotations

from benchmarks.axes import (
    allocate,
    call_overhead,
    fakequant_forward,
    fakequant_train,
    fusion,
    gemm_f32,
    qgemm,
    qgemm_prefill,
    scale_search,
    statistics,
    weights,
)
from benchmarks.case import Case

__all__ = ["AXES", "CASES", "cases"]

CASES: list[Case] = [
    *fakequant_forward.CASES,
    *fakequant_train.CASES,
    *qgemm.CASES,
    *qgemm_prefill.CASES,
    *gemm_f32.CASES,
    *fusion.CASES,
    *scale_search.CASES,
    *allocate.CASES,
    *statistics.CASES,
    *call_overhead.CASES,
    *weights.CASES,
]

AXES = list(dict.fromkeys(case.axis for case in CASES))


def cases(axis: str = "", name: str = "", quick: bool = False) -> list[Case]:
    """Return the cases of an axis whose name contains `name`; with `quick` only the quick ones."""
    return [
        c
        for c in CASES
        if (not axis or c.axis == axis) and name in c.name and (c.quick or not quick)
    ]
