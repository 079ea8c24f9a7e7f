"""One candidate scale of a group: how weights are quantised, run and compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cmibq.quant import PerGroup, QuantSpec, RangeMode, fake_quantize_weight
from cmibq.search.base import BlockRunner, GroupCalib, SearchConfig

__all__ = ["compare", "run_candidate", "weight_spec"]


def weight_spec(cfg: SearchConfig) -> QuantSpec:
    """Return how weights are quantised.

    The reference variant takes the published range as met, and with quantised activations one
    symmetric grid per row, whatever the group size.
    """
    if cfg.variant == "default":
        return QuantSpec(cfg.bits, PerGroup(cfg.group_size), cfg.symmetric)
    per_row = cfg.act_bits is not None
    symmetric = cfg.symmetric or per_row
    size = 0 if per_row else cfg.group_size
    mode = RangeMode.reference(symmetric=symmetric)
    return QuantSpec(cfg.bits, PerGroup(size), symmetric, mode)


def compare(target: Tensor, out: Tensor, token: Tensor, power: int) -> float:
    """Return sum_t token_t mean_c |target - out|**power of one chunk of tokens [t, C]."""
    error = (target - out).abs().pow_(power).mean(-1, dtype=torch.float64)
    return float(token @ error)


def run_candidate(
    run: BlockRunner,
    calib: GroupCalib,
    cfg: SearchConfig,
    s: Tensor,
    batches: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Run the inspected module with the weights that the scales s [K] lead to."""
    spec, pairs = weight_spec(cfg), zip(calib.group.linears, calib.weights, strict=True)
    scaled = [fake_quantize_weight(w * s, spec, name=n) for n, w in pairs]
    chosen = {} if batches is None else {"batches": batches}
    if cfg.act_bits is None:
        return run([w / s for w in scaled], input_scale=None, act_bits=None, **chosen)
    return run(scaled, input_scale=s, act_bits=cfg.act_bits, **chosen)
