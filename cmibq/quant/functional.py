"""Quantising whole tensors under a spec: what searches, modules and packing share."""

from __future__ import annotations

import torch
from torch import Tensor

from cmibq.errors import ConfigError, ModelError
from cmibq.ops.codes import fakequant_token
from cmibq.ops.fakequant import fakequant
from cmibq.quant.observers import OBSERVERS
from cmibq.quant.spec import QParams, QuantSpec

__all__ = ["fake_quantize_tokens", "fake_quantize_weight", "quantize_weight"]


def _matrix(w: Tensor, spec: QuantSpec, name: str) -> Tensor:
    try:
        m = spec.granularity.to_matrix(w)
    except ConfigError as error:
        raise ModelError(f"{name}: {error}") from error
    return m.to(torch.float32)


def _observe(m: Tensor, spec: QuantSpec, name: str) -> QParams:
    if m.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(m)):
        bad = int((~torch.isfinite(m)).sum())
        raise ModelError(
            f"{name}: {bad} of {m.numel()} values are NaN or infinite; a quantised model needs "
            "finite weights, so check the checkpoint"
        )
    try:
        return OBSERVERS[spec.observer](spec).observe(m)
    except ConfigError:
        raise
    except ValueError as error:  # a scale too large for float16
        raise ModelError(f"{name}: {error}") from error


def quantize_weight(w: Tensor, spec: QuantSpec, *, name: str = "weight") -> QParams:
    """Return the grids of a weight, one per row of its matrix.

    Args:
        w: any shape the granularity takes, [N, K] for a Linear; finite. Computed in float32, to
            which other dtypes are converted.
        spec: bits, granularity, range mode, observer.
        name: name of the layer, for messages.

    Returns:
        `QParams` with float32 scales; the rows are those of ``spec.granularity.matrix(w.shape)``.

    Raises:
        ModelError: NaN or infinite values, a group size that does not divide, a scale that
            overflows float16; names the layer.

    Example:
        >>> from cmibq.quant.spec import PerGroup, RangeMode
        >>> w = torch.tensor([[0.0, 1.0, 2.0, 3.0], [-4.0, 0.0, 4.0, 8.0]])
        >>> quantize_weight(w, QuantSpec(2, PerGroup(4), mode=RangeMode.ZERO_IN_RANGE)).scale
        tensor([1., 4.])
    """
    with torch.no_grad():
        return _observe(_matrix(w.detach(), spec, name), spec, name)


def fake_quantize_weight(w: Tensor, spec: QuantSpec, *, name: str = "weight") -> Tensor:
    """Return a weight rounded to its grids, as the packed layer will compute with it.

    Differentiable in `w` (straight-through, the grids held constant).

    Args:
        w: as in `quantize_weight`.
        spec: as in `quantize_weight`.
        name: as in `quantize_weight`.

    Returns:
        Tensor of the shape and dtype of `w`; the arithmetic is float32.

    Raises:
        ModelError: as `quantize_weight`.

    Example:
        >>> from cmibq.quant.spec import PerGroup
        >>> fake_quantize_weight(torch.tensor([[0.0, 1.2, 1.7, 3.0]]), QuantSpec(2, PerGroup(4)))
        tensor([[0., 1., 2., 3.]])
    """
    m = _matrix(w, spec, name)
    q = _observe(m.detach(), spec, name)
    out = fakequant(m, q.scale, q.lo(), q.hi())
    return spec.granularity.from_matrix(out, w.shape).to(w.dtype)


def fake_quantize_tokens(x: Tensor, bits: int) -> Tensor:
    """Return activations rounded to a signed grid per token (vector of the last axis).

    Args:
        x: [..., C]; the arithmetic is float32, to which other dtypes are converted.
        bits: 2..16.

    Returns:
        Tensor of the shape and dtype of `x`; the gradient is that of the identity. A token with
        NaN or infinity becomes NaN.

    Raises:
        ValueError: bits out of range.

    References:
        Dettmers et al., "LLM.int8()", NeurIPS 2022, section 2 (absmax per token), as MBQ uses it.

    Example:
        >>> fake_quantize_tokens(torch.tensor([[7.0, -3.4, 0.2]]), 4)
        tensor([[ 7., -3.,  0.]])
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous().to(torch.float32)
    return fakequant_token(rows, bits=bits).reshape(x.shape).to(x.dtype)
